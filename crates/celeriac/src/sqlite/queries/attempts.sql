-- The runs that did not end a task, oldest first. ?1 seq. Returns (worker, started, ended, outcome, error).
SELECT worker, started, ended, outcome, error FROM attempt WHERE seq = ?1 ORDER BY number
