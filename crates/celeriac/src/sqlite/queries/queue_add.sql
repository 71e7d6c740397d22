-- Names a new queue. ?1 name. Its number is the last rowid.
INSERT INTO queue (name) VALUES (?1)
