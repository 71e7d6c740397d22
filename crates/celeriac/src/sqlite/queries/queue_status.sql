-- Queues that hold a message or are paused, by name. Returns (name, ready, delayed, reserved, oldest, paused). The line is in the order of
-- publishing within a priority, so that the oldest message is the first of one of the ten.
SELECT name, ready, delayed, reserved,
    (WITH level (priority) AS (VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9))
     SELECT min((SELECT t.published FROM ready r JOIN task t ON t.seq = r.seq
                 WHERE r.queue = waiting.id AND r.priority = level.priority ORDER BY r.position LIMIT 1))
     FROM level) AS oldest,
    paused
FROM (
    SELECT q.id, q.name, q.ready, q.delayed, q.paused, coalesce(l.reserved, 0) AS reserved
    FROM queue q LEFT JOIN (SELECT queue, count(*) AS reserved FROM lease GROUP BY queue) l ON l.queue = q.id
) AS waiting
WHERE ready > 0 OR delayed > 0 OR reserved > 0 OR paused
ORDER BY name
