-- Whether a reservation is held. ?1 seq, ?2 token. Returns a row if so.
SELECT 1 FROM lease WHERE seq = ?1 AND token = ?2
