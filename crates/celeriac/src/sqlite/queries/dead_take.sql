-- Takes a message out of the dead letters. ?1 seq.
DELETE FROM dead WHERE seq = ?1
