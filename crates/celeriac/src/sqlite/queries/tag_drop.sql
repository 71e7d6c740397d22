-- Forgets the tags of a task. ?1 seq.
DELETE FROM tag WHERE seq = ?1
