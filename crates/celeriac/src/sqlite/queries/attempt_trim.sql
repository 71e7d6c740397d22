-- Forgets the oldest attempts of a task. ?1 seq, ?2 last number to forget.
DELETE FROM attempt WHERE seq = ?1 AND number <= ?2
