-- Forgets commands that are out of date, and the oldest of too many. ?1 now, ?2 the newest number to forget.
DELETE FROM command WHERE expires <= ?1 OR number <= ?2
