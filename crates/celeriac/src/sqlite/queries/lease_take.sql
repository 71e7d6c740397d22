-- Ends a reservation and says what it was. ?1 seq, ?2 token. Returns (queue, priority, position, deliveries, begun before
-- it, revoked, worker, since), or nothing when it is not held any more.
DELETE FROM lease WHERE seq = ?1 AND token = ?2
RETURNING queue, priority, position, deliveries, begun & 1, revoked, worker, since
