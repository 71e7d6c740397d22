-- Forgets the durable steps of a task. ?1 seq.
DELETE FROM step WHERE seq = ?1
