-- Whether the queue gives out work; one row.
CREATE TABLE queue_state (
    is_paused INTEGER NOT NULL
) STRICT;
INSERT INTO queue_state (is_paused) VALUES (0);
