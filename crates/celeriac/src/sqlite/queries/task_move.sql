-- Gives a task a new place in its line. ?1 seq, ?2 position.
UPDATE task SET position = ?2 WHERE seq = ?1
