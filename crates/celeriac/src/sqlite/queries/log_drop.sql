-- Forgets the log of a task. ?1 seq.
DELETE FROM log WHERE seq = ?1
