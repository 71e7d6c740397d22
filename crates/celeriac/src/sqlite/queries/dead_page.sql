-- Dead letters, oldest first. ?1 after number, ?2 how many. Returns (number, id, name, queue name, reason, died,
-- deliveries, head, body).
SELECT x.number, t.id, t.name, q.name, x.reason, x.died, x.deliveries, t.head, t.body
FROM dead x JOIN task t ON t.seq = x.seq LEFT JOIN queue q ON q.id = t.queue
WHERE x.number > ?1 ORDER BY x.number LIMIT ?2
