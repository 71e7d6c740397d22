-- Keeps a new task and its message. ?1 seq (and position), ?2 id, ?3 name, ?4 queue, ?5 priority, ?6 published, ?7 head,
-- ?8 body. Changes nothing when the id is known.
INSERT INTO task (seq, id, name, queue, priority, position, published, head, body)
VALUES (?1, ?2, ?3, ?4, ?5, ?1, ?6, ?7, ?8)
ON CONFLICT (id) DO NOTHING
