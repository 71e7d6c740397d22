-- Forgets a task that is not live. ?1 seq.
DELETE FROM task WHERE seq = ?1
