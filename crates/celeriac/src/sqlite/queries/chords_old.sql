-- Chords in which nothing has moved for long. ?1 before, ?2 how many. Returns (chord).
SELECT chord FROM chord WHERE at < ?1 LIMIT ?2
