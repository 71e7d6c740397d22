-- Marks a reservation as begun under early acknowledgement. ?1 seq, ?2 token.
UPDATE lease SET begun = begun | 2 WHERE seq = ?1 AND token = ?2
