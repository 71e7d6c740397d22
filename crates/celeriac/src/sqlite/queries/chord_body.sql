-- A complete chord. ?1 group. Returns (chord, body) or nothing.
SELECT chord, body FROM chord WHERE group_id = ?1 AND ready IS NOT NULL
