-- A piece of the feed. ?1 after number, ?2 how many. Returns (number, id, name, position, event, data, at).
SELECT l.number, t.id, t.name, l.position, l.event, l.data, l.at FROM log l JOIN task t ON t.seq = l.seq
WHERE l.number > ?1 ORDER BY l.number LIMIT ?2
