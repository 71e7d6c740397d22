-- Leases the head of a line up to a position. ?1 token, ?2 worker, ?3 expires, ?4 queue, ?5 priority, ?6 last position,
-- ?7 now.
INSERT INTO lease (seq, token, worker, expires, queue, priority, position, deliveries, begun, revoked, since)
SELECT seq, ?1, ?2, ?3, queue, priority, position, deliveries + 1, begun, revoked, ?7 FROM ready
WHERE queue = ?4 AND priority = ?5 AND position <= ?6
