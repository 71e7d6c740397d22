-- Appends to the log of a task. ?1 number, ?2 seq, ?3 position, ?4 now, ?5 event, ?6 data.
INSERT INTO log (number, seq, position, at, event, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
