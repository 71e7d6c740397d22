-- Leases one message, to be revoked and not to be run. ?1 seq, ?2 token, ?3 worker, ?4 expires, ?5 queue, ?6 priority,
-- ?7 position, ?8 deliveries, ?9 begun, ?10 revoked.
INSERT INTO lease (seq, token, worker, expires, queue, priority, position, deliveries, begun, revoked)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
