-- The last position of a task's log. ?1 id. Returns (position) or (NULL).
SELECT max(position) FROM log WHERE seq = (SELECT seq FROM task WHERE id = ?1)
