-- Messages whose time has come, the first due first. ?1 now, ?2 how many. Returns (seq, queue, priority, position,
-- deliveries, begun, revoked).
SELECT seq, queue, priority, position, deliveries, begun, revoked FROM delayed WHERE due <= ?1 ORDER BY due LIMIT ?2
