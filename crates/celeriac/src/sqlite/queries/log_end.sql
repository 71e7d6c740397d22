-- The last position of a task's log; answered from the index alone. ?1 seq. Returns (position) or (NULL).
SELECT max(position) FROM log WHERE seq = ?1
