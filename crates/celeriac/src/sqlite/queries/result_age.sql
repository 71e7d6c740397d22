-- The state of a result and when it was last written. ?1 seq. Returns (state, at) or nothing.
SELECT state, at FROM result WHERE seq = ?1
