-- Whether a task has a final state. ?1 id. Returns a row if so.
SELECT 1 FROM task t JOIN result s ON s.seq = t.seq WHERE t.id = ?1 AND s.state IN ('SUCCESS', 'FAILURE', 'REVOKED')
