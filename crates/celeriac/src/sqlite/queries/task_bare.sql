-- Keeps a task of which only results are known. ?1 seq, ?2 id, ?3 name, ?4 now.
INSERT INTO task (seq, id, name, priority, position, published) VALUES (?1, ?2, ?3, 0, ?1, ?4)
