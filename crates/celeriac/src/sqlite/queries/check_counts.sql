-- Queues whose counts are wrong. Returns one line of text for each.
SELECT 'queue ' || name || ' counts ' || ready || ' ready and ' || delayed || ' delayed instead of ' || r || ' and ' || d
FROM (SELECT q.name, q.ready, q.delayed, (SELECT count(*) FROM ready WHERE queue = q.id) AS r,
             (SELECT count(*) FROM delayed WHERE queue = q.id) AS d FROM queue q)
WHERE ready <> r OR delayed <> d
