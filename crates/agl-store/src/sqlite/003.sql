-- Whose a rollout is: null for runners, who take theirs from the queue, 1 for controllers.
ALTER TABLE rollouts ADD COLUMN is_controlled INTEGER;
CREATE INDEX rollouts_controlled ON rollouts (status) WHERE is_controlled = 1;

-- What a controller keeps beside a rollout; `seq` is the rollout's.
CREATE TABLE controls (
    seq INTEGER PRIMARY KEY,
    k8s_job_name TEXT,
    last_attempt_id TEXT,
    error_message TEXT,
    version INTEGER NOT NULL,
    updated_at REAL NOT NULL
) STRICT;

-- Apart, so that a change of status does not rewrite a large job template; `seq` is the rollout's.
CREATE TABLE run_configs (
    seq INTEGER PRIMARY KEY,
    config TEXT NOT NULL
) STRICT;

-- The completion log: the place of each rollout that has ended, counted up for ever.
ALTER TABLE rollouts ADD COLUMN completion INTEGER;
UPDATE rollouts SET completion = ended.place FROM (
    SELECT seq, row_number() OVER (ORDER BY end_time, seq) AS place FROM rollouts WHERE end_time IS NOT NULL
) AS ended WHERE rollouts.seq = ended.seq;
CREATE UNIQUE INDEX rollouts_completion ON rollouts (completion) WHERE completion IS NOT NULL;
CREATE TABLE completion_log (
    last INTEGER NOT NULL
) STRICT;
INSERT INTO completion_log (last) SELECT coalesce(max(completion), 0) FROM rollouts;

CREATE TABLE models (
    seq INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    version INTEGER NOT NULL,
    UNIQUE (model, endpoint)
) STRICT;
