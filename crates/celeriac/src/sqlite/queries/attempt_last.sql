-- When the last run that did not end a task was reserved. ?1 seq. Returns (started) or nothing.
SELECT started FROM attempt WHERE seq = ?1 ORDER BY number DESC LIMIT 1
