-- Leases that have passed. ?1 now, ?2 how many. Returns (seq, queue, priority, position, deliveries, whether begun by
-- anybody, revoked, worker, since, expires).
SELECT seq, queue, priority, position, deliveries, begun > 0, revoked, worker, since, expires FROM lease
WHERE expires <= ?1 LIMIT ?2
