-- The number of a queue. ?1 name. Returns (id) or nothing.
SELECT id FROM queue WHERE name = ?1
