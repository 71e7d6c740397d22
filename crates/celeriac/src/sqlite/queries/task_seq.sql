-- The number of a task; answered from the index alone. ?1 id. Returns (seq) or nothing.
SELECT seq FROM task WHERE id = ?1
