-- Waiting messages whose place in line is not the one their task knows. Returns one line of text for each.
SELECT 'task ' || t.id || ' waits in another place than it should' FROM ready r JOIN task t ON t.seq = r.seq
WHERE (t.queue, t.priority, t.position) IS NOT (r.queue, r.priority, r.position)
UNION ALL
SELECT 'task ' || t.id || ' is delayed for another place than it should' FROM delayed d JOIN task t ON t.seq = d.seq
WHERE (t.queue, t.priority, t.position) IS NOT (d.queue, d.priority, d.position)
