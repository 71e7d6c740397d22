-- Which logs have grown. ?1 after number of the feed, ?2 how many. Returns (number, id, position). Reads the front of each
-- record only, whatever its size.
SELECT l.number, t.id, l.position FROM log l JOIN task t ON t.seq = l.seq
WHERE l.number > ?1 ORDER BY l.number LIMIT ?2
