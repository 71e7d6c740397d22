-- The commands after a number that are not out of date, in order. ?1 after, ?2 now. Returns (number, expires, ticket,
-- method, arguments, destination).
SELECT number, expires, ticket, method, arguments, destination FROM command
WHERE number > ?1 AND expires > ?2 ORDER BY number
