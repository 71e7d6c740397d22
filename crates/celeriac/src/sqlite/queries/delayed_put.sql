-- Puts a message aside until its time. ?1 seq, ?2 due, ?3 queue, ?4 priority, ?5 position, ?6 deliveries, ?7 begun,
-- ?8 revoked.
INSERT INTO delayed (seq, due, queue, priority, position, deliveries, begun, revoked)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
