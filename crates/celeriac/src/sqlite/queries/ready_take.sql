-- Takes one message out of its line. ?1 queue, ?2 priority, ?3 position.
DELETE FROM ready WHERE queue = ?1 AND priority = ?2 AND position = ?3
