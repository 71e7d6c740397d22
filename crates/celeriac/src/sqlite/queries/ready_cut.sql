-- Takes the head of a line out of it, up to a position. ?1 queue, ?2 priority, ?3 last position.
DELETE FROM ready WHERE queue = ?1 AND priority = ?2 AND position <= ?3
