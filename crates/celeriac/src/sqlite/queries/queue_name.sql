-- The name of a queue. ?1 id. Returns (name).
SELECT name FROM queue WHERE id = ?1
