-- The revoked reservations of a worker. ?1 worker. Returns (seq, token, revoked).
SELECT seq, token, revoked FROM lease WHERE worker = ?1 AND revoked > 0
