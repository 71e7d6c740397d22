-- The tags of a task, in the order given. ?1 seq. Returns (tag).
SELECT tag FROM tag WHERE seq = ?1 ORDER BY place
