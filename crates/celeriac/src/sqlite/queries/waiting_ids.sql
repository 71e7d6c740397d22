-- The tasks that wait on a queue, in line first, then by due time. ?1 queue. Returns (id).
SELECT id FROM (
    SELECT t.id, 0 AS part, r.priority AS a, r.position AS b FROM ready r JOIN task t ON t.seq = r.seq WHERE r.queue = ?1
    UNION ALL
    SELECT t.id, 1, d.due, d.seq FROM delayed d JOIN task t ON t.seq = d.seq WHERE d.queue = ?1
) ORDER BY part, a, b
