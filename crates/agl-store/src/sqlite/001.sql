-- `seq` is the order of insertion.

CREATE TABLE rollouts (
    seq INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    start_time REAL NOT NULL,
    end_time REAL,
    mode TEXT,
    resources_id TEXT,
    config TEXT NOT NULL
) STRICT;
CREATE INDEX rollouts_status ON rollouts (status);
CREATE INDEX rollouts_start_time ON rollouts (start_time);
CREATE INDEX rollouts_end_time ON rollouts (end_time);
CREATE INDEX rollouts_mode ON rollouts (mode);
CREATE INDEX rollouts_resources_id ON rollouts (resources_id);

-- Apart, so that a change of status does not rewrite a large input.
CREATE TABLE rollout_bodies (
    seq INTEGER PRIMARY KEY,
    input TEXT NOT NULL,
    metadata TEXT
) STRICT;

CREATE TABLE attempts (
    seq INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL,
    attempt_id TEXT NOT NULL,
    sequence_id INTEGER NOT NULL,
    start_time REAL NOT NULL,
    end_time REAL,
    status TEXT NOT NULL,
    worker_id TEXT,
    last_heartbeat_time REAL,
    metadata TEXT,
    UNIQUE (rollout_id, sequence_id),
    UNIQUE (rollout_id, attempt_id)
) STRICT;

-- Exactly the rollouts whose status is queuing or requeuing.
CREATE TABLE queue (
    place INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL UNIQUE
) STRICT;

-- When the latest attempt of a rollout has run too long or been silent too long.
CREATE TABLE deadlines (
    rollout_id TEXT PRIMARY KEY,
    moment REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX deadlines_moment ON deadlines (moment);

-- The last span sequence id of a rollout, which may not exist.
CREATE TABLE counters (
    rollout_id TEXT PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE spans (
    seq INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL,
    attempt_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    sequence_id INTEGER NOT NULL,
    trace_id TEXT NOT NULL,
    parent_id TEXT,
    name TEXT NOT NULL,
    start_time REAL,
    end_time REAL,
    body TEXT NOT NULL,
    UNIQUE (rollout_id, attempt_id, span_id)
) STRICT;
CREATE INDEX spans_sequence_id ON spans (rollout_id, sequence_id);

CREATE TABLE resources (
    seq INTEGER PRIMARY KEY,
    resources_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    -- The `seq` of version 1.
    first_seq INTEGER NOT NULL,
    is_newest INTEGER NOT NULL,
    create_time REAL NOT NULL,
    update_time REAL NOT NULL,
    resources TEXT NOT NULL,
    UNIQUE (resources_id, version)
) STRICT;
CREATE INDEX resources_newest ON resources (first_seq) WHERE is_newest = 1;

CREATE TABLE workers (
    seq INTEGER PRIMARY KEY,
    worker_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    heartbeat_stats TEXT,
    last_heartbeat_time REAL,
    last_dequeue_time REAL,
    last_busy_time REAL,
    last_idle_time REAL,
    current_rollout_id TEXT,
    current_attempt_id TEXT
) STRICT;
