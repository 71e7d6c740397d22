-- Puts a message in line. ?1 queue, ?2 priority, ?3 position, ?4 seq, ?5 deliveries, ?6 begun, ?7 revoked.
INSERT INTO ready (queue, priority, position, seq, deliveries, begun, revoked) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
