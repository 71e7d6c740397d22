-- Takes one message out of those that wait for their time. ?1 seq.
DELETE FROM delayed WHERE seq = ?1
