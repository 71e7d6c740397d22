-- Whether a message waits on a queue. ?1 queue name. Returns (whether).
SELECT EXISTS (SELECT 1 FROM ready WHERE queue = (SELECT id FROM queue WHERE name = ?1))
