-- The head of a line; nothing when its queue is paused, which is looked up once. ?1 queue, ?2 how many. Returns
-- (priority, position, seq, deliveries, begun, revoked).
SELECT priority, position, seq, deliveries, begun, revoked FROM ready
WHERE queue = ?1 AND (SELECT NOT paused FROM queue WHERE id = ?1)
ORDER BY priority, position LIMIT ?2
