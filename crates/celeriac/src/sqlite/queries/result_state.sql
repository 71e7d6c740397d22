-- The stored state of a task. ?1 seq. Returns (state) or nothing.
SELECT state FROM result WHERE seq = ?1
