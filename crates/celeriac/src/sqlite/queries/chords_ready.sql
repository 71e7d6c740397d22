-- Complete chords, the first completed first. ?1 how many. Returns (group).
SELECT group_id FROM chord WHERE ready IS NOT NULL ORDER BY ready LIMIT ?1
