-- Whether a message waits on a queue that is not paused. ?1 queue name. Returns (whether).
SELECT EXISTS (SELECT 1 FROM ready WHERE queue = (SELECT id FROM queue WHERE name = ?1 AND NOT paused))
