-- The id of a task. ?1 seq. Returns (id).
SELECT id FROM task WHERE seq = ?1
