-- Takes all messages out of a line. ?1 queue.
DELETE FROM ready WHERE queue = ?1
