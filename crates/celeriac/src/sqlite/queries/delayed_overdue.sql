-- Messages whose time has come and that no reservation has moved into their lines yet, by queue. ?1 now. Returns (queue
-- name, how many, when the oldest was published).
SELECT q.name, count(*), min(t.published)
FROM delayed d JOIN queue q ON q.id = d.queue JOIN task t ON t.seq = d.seq WHERE d.due <= ?1 GROUP BY d.queue
