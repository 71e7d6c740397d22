-- Forgets answers that were kept long enough. ?1 the time of the youngest of them.
DELETE FROM reply WHERE at <= ?1
