-- What a delivery carries. ?1 seq. Returns (id, head, body).
SELECT id, head, body FROM task WHERE seq = ?1
