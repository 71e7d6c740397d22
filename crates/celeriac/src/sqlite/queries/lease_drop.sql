-- Ends whatever reservation there is of a task. ?1 seq.
DELETE FROM lease WHERE seq = ?1
