-- The ends of a task's log. ?1 seq. Returns (first, last), both NULL for an empty one.
SELECT (SELECT min(position) FROM log WHERE seq = ?1), (SELECT max(position) FROM log WHERE seq = ?1)
