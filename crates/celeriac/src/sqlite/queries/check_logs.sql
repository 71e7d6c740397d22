-- Task logs with gaps. Returns one line of text for each.
SELECT 'the log of task ' || coalesce((SELECT id FROM task t WHERE t.seq = l.seq), 'number ' || l.seq) || ' has gaps'
FROM log l GROUP BY l.seq HAVING max(position) - min(position) + 1 <> count(*)
