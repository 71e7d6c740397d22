-- Takes all delayed messages of a queue out. ?1 queue.
DELETE FROM delayed WHERE queue = ?1
