-- Messages that stand in more than one place. Returns one line of text for each.
SELECT 'task ' || coalesce((SELECT id FROM task t WHERE t.seq = p.seq), 'number ' || p.seq)
    || ' stands in ' || group_concat(place, ' and ')
FROM (SELECT seq, 'ready' AS place FROM ready UNION ALL SELECT seq, 'delayed' FROM delayed
      UNION ALL SELECT seq, 'lease' FROM lease UNION ALL SELECT seq, 'dead' FROM dead) AS p
GROUP BY p.seq HAVING count(*) > 1
