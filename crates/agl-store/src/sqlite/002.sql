-- How many spans a rollout has.
ALTER TABLE counters ADD COLUMN spans INTEGER NOT NULL DEFAULT 0;
UPDATE counters SET spans = (SELECT count(*) FROM spans WHERE spans.rollout_id = counters.rollout_id);

-- `body` is the JSON of a span behind its place, from `trace_id` on; `is_plain` tells whether clients of 0.3 can read
-- it as it is.
ALTER TABLE spans ADD COLUMN is_plain INTEGER NOT NULL DEFAULT 1;

-- When the spans of a rollout were last removed to make room.
ALTER TABLE rollouts ADD COLUMN purged_at REAL;
CREATE INDEX rollouts_purgeable ON rollouts (end_time)
    WHERE end_time IS NOT NULL AND (purged_at IS NULL OR purged_at < end_time);

-- Calls that carried an idempotency key, in the order in which they were made.
CREATE TABLE receipts (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    fingerprint BLOB NOT NULL,
    made REAL NOT NULL,
    answer TEXT NOT NULL
) STRICT;
