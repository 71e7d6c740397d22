-- An open chord. ?1 group. Returns (chord, whether complete) or nothing.
SELECT chord, ready IS NOT NULL FROM chord WHERE group_id = ?1
