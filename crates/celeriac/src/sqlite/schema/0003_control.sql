-- Paused queues, live workers, and what is said to workers and answered by them. Times are nanoseconds since 1970 (UTC).

-- Nothing is reserved from a paused queue.
ALTER TABLE queue ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;

-- The number of the newest command, which must not come back when commands are forgotten; and how many answers there
-- have been, by which those who wait for one see that there is news.
ALTER TABLE counter ADD COLUMN command INTEGER NOT NULL DEFAULT 0;
ALTER TABLE counter ADD COLUMN reply INTEGER NOT NULL DEFAULT 0;

-- Workers that said that they live, each until `expires`: as many rows as there are workers, so whole scans are cheap.
-- `card` is the rest of what is known of it, as JSON.
CREATE TABLE worker (
    name    TEXT PRIMARY KEY,
    expires INTEGER NOT NULL,
    card    TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Commands to workers. `destination` is a JSON array of names, NULL for all.
CREATE TABLE command (
    number      INTEGER PRIMARY KEY,
    expires     INTEGER NOT NULL,
    ticket      TEXT NOT NULL,
    method      TEXT NOT NULL,
    arguments   TEXT NOT NULL,
    destination TEXT
) STRICT;

-- Their answers.
CREATE TABLE reply (
    ticket  TEXT NOT NULL,
    worker  TEXT NOT NULL,
    at      INTEGER NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (ticket, worker)
) STRICT, WITHOUT ROWID;
CREATE INDEX reply_at ON reply (at);
