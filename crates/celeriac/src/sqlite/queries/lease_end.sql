-- Ends a reservation. ?1 seq, ?2 token. Changes no row when it is not held any more.
DELETE FROM lease WHERE seq = ?1 AND token = ?2
