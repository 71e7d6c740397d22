-- The next worker that ended a task, in the order of names. ?1 after, ?2 before. Returns (worker) or nothing.
SELECT worker FROM result WHERE worker > ?1 AND worker < ?2 ORDER BY worker LIMIT 1
