-- The number of a task and whether its state is final. ?1 id. Returns (seq, whether) or nothing. Spelled out, because a
-- list after IN is built as a table at each use.
SELECT t.seq, coalesce(s.state = 'SUCCESS' OR s.state = 'FAILURE' OR s.state = 'REVOKED', 0)
FROM task t LEFT JOIN result s ON s.seq = t.seq WHERE t.id = ?1
