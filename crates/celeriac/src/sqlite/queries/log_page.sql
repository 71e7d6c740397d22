-- A piece of a task's log. ?1 seq, ?2 after position, ?3 how many. Returns (position, event, data, at).
SELECT position, event, data, at FROM log WHERE seq = ?1 AND position > ?2 ORDER BY position LIMIT ?3
