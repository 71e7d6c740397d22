-- Puts a message aside for a person. ?1 number, ?2 seq, ?3 reason, ?4 died, ?5 deliveries, ?6 revoked.
INSERT INTO dead (number, seq, reason, died, deliveries, revoked) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
