-- Counts ends, and completes the chord when they are enough. ?1 chord, ?2 how many more, ?3 now. Returns (whether it is
-- complete).
UPDATE chord SET ended = ended + ?2, at = ?3,
    ready = CASE WHEN ended + ?2 >= size THEN 1 + coalesce((SELECT max(ready) FROM chord WHERE ready IS NOT NULL), 0) END
WHERE chord = ?1 RETURNING ready IS NOT NULL
