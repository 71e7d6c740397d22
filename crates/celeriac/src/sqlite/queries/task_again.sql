-- Gives a settled task a new message at the end of its line. ?1 seq, ?2 name, ?3 queue, ?4 priority, ?5 position,
-- ?6 published, ?7 head, ?8 body. A task without a message is accepted only now.
UPDATE task SET name = ?2, queue = ?3, priority = ?4, position = ?5, published = ?6, head = ?7, body = ?8,
    accepted = CASE WHEN head IS NOT NULL THEN coalesce(accepted, published) END
WHERE seq = ?1
