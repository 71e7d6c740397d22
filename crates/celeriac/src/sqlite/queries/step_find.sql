-- The value of a durable step. ?1 id, ?2 name. Returns (value) or nothing.
SELECT value FROM step WHERE seq = (SELECT seq FROM task WHERE id = ?1) AND name = ?2
