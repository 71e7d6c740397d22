-- The head of a line. ?1 queue, ?2 how many. Returns (priority, position, seq, deliveries, begun, revoked).
SELECT priority, position, seq, deliveries, begun, revoked FROM ready WHERE queue = ?1
ORDER BY priority, position LIMIT ?2
