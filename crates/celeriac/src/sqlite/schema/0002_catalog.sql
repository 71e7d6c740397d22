-- What is kept for those who list tasks and look at one.

-- When the task was accepted first, where that is not the time in `published`: it was sent again since.
ALTER TABLE task ADD COLUMN accepted INTEGER;

-- When the message was reserved to be run; NULL for one that was taken to be revoked.
ALTER TABLE lease ADD COLUMN since INTEGER;

-- Made anew, for the sake of an order in which a list reads the first columns and never the pages of a large result.
-- worker and started: the run that ended the task, where a run did.
ALTER TABLE result RENAME TO result_before;
CREATE TABLE result (
    seq       INTEGER PRIMARY KEY,
    state     TEXT NOT NULL,
    at        INTEGER NOT NULL,
    date_done INTEGER,
    worker    TEXT,
    started   INTEGER,
    result    TEXT,
    traceback TEXT,
    children  TEXT,
    group_id  TEXT,
    parent_id TEXT,
    extended  TEXT
) STRICT;
INSERT INTO result (seq, state, at, date_done, result, traceback, children, group_id, parent_id, extended)
SELECT seq, state, at, date_done, result, traceback, children, group_id, parent_id, extended FROM result_before;
DROP TABLE result_before;

-- Runs that did not end their task, numbered from 1 in the order of their ends; the newest of each task are kept.
CREATE TABLE attempt (
    seq     INTEGER NOT NULL,
    number  INTEGER NOT NULL,
    worker  TEXT NOT NULL,
    started INTEGER NOT NULL,
    ended   INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    error   TEXT,
    PRIMARY KEY (seq, number)
) STRICT, WITHOUT ROWID;

-- Words to find tasks by, in the order given.
CREATE TABLE tag (
    seq   INTEGER NOT NULL,
    place INTEGER NOT NULL,
    tag   TEXT NOT NULL,
    PRIMARY KEY (seq, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX tag_word ON tag (tag, seq);

CREATE INDEX task_name ON task (name);
CREATE INDEX task_queue ON task (queue);
CREATE INDEX result_worker ON result (worker) WHERE worker IS NOT NULL;
-- Nearly all results are of these two states, so that an index on them would cost much and find little.
CREATE INDEX result_state ON result (state) WHERE state <> 'SUCCESS' AND state <> 'PENDING';
-- The newest report of progress lies under any number of other records.
CREATE INDEX log_progress ON log (seq, position) WHERE event = 'progress';
