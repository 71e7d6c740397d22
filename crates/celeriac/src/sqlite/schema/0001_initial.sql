-- The first layout. Times are nanoseconds since 1970 (UTC). Numbers named `queue` point at queue.id, numbers named
-- `seq` at task.seq. No triggers and no foreign keys: every statement that writes keeps these promises by itself, and
-- `SqliteStore::check` verifies them.
--
-- A task stands in exactly one of ready, delayed, lease and dead while its message lives, and in none of them once it
-- is settled; a settled task has a row in `result`. What moves often is kept in small rows apart from the message, so
-- that reserving and settling never rewrite the bytes of a body.

-- The last numbers given out: places in line (task.seq too), reservations, records of the feed. Kept apart from the
-- rows themselves, because the newest rows may be deleted and their numbers must not come back.
CREATE TABLE counter (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    position INTEGER NOT NULL,
    token    INTEGER NOT NULL,
    number   INTEGER NOT NULL
) STRICT;
INSERT INTO counter VALUES (1, 0, 0, 0);

-- Names of queues, so that keys are short, and how many messages wait on each.
CREATE TABLE queue (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    ready   INTEGER NOT NULL DEFAULT 0,
    delayed INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row for each known task, and its message as last published. Without a head it is a task of which only results
-- are known: its message went another way, or is still to come. (queue, priority, position) is its place in line.
CREATE TABLE task (
    seq       INTEGER PRIMARY KEY,
    id        TEXT NOT NULL UNIQUE,
    name      TEXT NOT NULL,
    queue     INTEGER,
    priority  INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    published INTEGER NOT NULL,
    head      TEXT,
    body      BLOB
) STRICT;

-- Messages that wait for a worker, in the order in which they are taken.
CREATE TABLE ready (
    queue      INTEGER NOT NULL,
    priority   INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    begun      INTEGER NOT NULL,
    revoked    INTEGER NOT NULL,
    PRIMARY KEY (queue, priority, position)
) STRICT, WITHOUT ROWID;

-- Messages that wait for their time.
CREATE TABLE delayed (
    seq        INTEGER PRIMARY KEY,
    due        INTEGER NOT NULL,
    queue      INTEGER NOT NULL,
    priority   INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    begun      INTEGER NOT NULL,
    revoked    INTEGER NOT NULL
) STRICT;
CREATE INDEX delayed_due ON delayed (due);

-- Messages that workers hold: as many rows as workers have slots, so whole scans are cheap and no index is kept.
-- begun: 1 by a worker that was lost, 2 by this one, 3 both. revoked: 0 no, 1 yes, 2 yes and to be stopped even though
-- it runs.
CREATE TABLE lease (
    seq        INTEGER PRIMARY KEY,
    token      INTEGER NOT NULL,
    worker     TEXT NOT NULL,
    expires    INTEGER NOT NULL,
    queue      INTEGER NOT NULL,
    priority   INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    begun      INTEGER NOT NULL,
    revoked    INTEGER NOT NULL
) STRICT;

-- Messages put aside for a person.
CREATE TABLE dead (
    number     INTEGER PRIMARY KEY,
    seq        INTEGER NOT NULL UNIQUE,
    reason     TEXT NOT NULL,
    died       INTEGER NOT NULL,
    deliveries INTEGER NOT NULL,
    revoked    INTEGER NOT NULL
) STRICT;

-- What became of tasks. `at` is when this row was last written, or the message settled: the age that sweeping goes by.
CREATE TABLE result (
    seq       INTEGER PRIMARY KEY,
    state     TEXT NOT NULL,
    at        INTEGER NOT NULL,
    result    TEXT,
    traceback TEXT,
    children  TEXT,
    date_done INTEGER,
    group_id  TEXT,
    parent_id TEXT,
    extended  TEXT
) STRICT;

-- The logs of all tasks: `number` orders the feed, (seq, position) each task's own log.
CREATE TABLE log (
    number   INTEGER PRIMARY KEY,
    seq      INTEGER NOT NULL,
    position INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    event    TEXT NOT NULL,
    data     TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX log_position ON log (seq, position);

-- Durable steps that finished.
CREATE TABLE step (
    seq   INTEGER NOT NULL,
    name  TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (seq, name)
) STRICT, WITHOUT ROWID;

-- Chords that were opened and not yet fired; `ready` numbers the complete ones in the order of their completion.
CREATE TABLE chord (
    chord    INTEGER PRIMARY KEY,
    group_id TEXT NOT NULL UNIQUE,
    size     INTEGER NOT NULL,
    ended    INTEGER NOT NULL,
    ready    INTEGER,
    at       INTEGER NOT NULL,
    body     TEXT NOT NULL
) STRICT;
CREATE INDEX chord_ready ON chord (ready) WHERE ready IS NOT NULL;

-- The ends of their header tasks.
CREATE TABLE chord_part (
    part    INTEGER PRIMARY KEY,
    chord   INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    place   INTEGER,
    state   TEXT NOT NULL,
    result  TEXT NOT NULL,
    UNIQUE (chord, task_id)
) STRICT;

-- Shapes of groups.
CREATE TABLE saved_group (
    group_id TEXT PRIMARY KEY,
    shape    TEXT NOT NULL,
    at       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
