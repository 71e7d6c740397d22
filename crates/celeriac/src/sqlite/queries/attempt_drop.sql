-- Forgets the attempts of a task. ?1 seq.
DELETE FROM attempt WHERE seq = ?1
