-- The newest record of the feed. Returns (number) or (NULL).
SELECT max(number) FROM log
