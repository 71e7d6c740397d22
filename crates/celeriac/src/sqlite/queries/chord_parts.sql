-- The ends counted for a chord, in order; those without a place come last, as they came. ?1 chord. Returns (task id,
-- place, state, result).
SELECT task_id, place, state, result FROM chord_part WHERE chord = ?1 ORDER BY place IS NULL, place, part
