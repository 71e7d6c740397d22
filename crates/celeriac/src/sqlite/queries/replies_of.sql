-- The answers under a ticket that are younger than a time. ?1 ticket, ?2 that time. Returns (worker, content).
SELECT worker, content FROM reply WHERE ticket = ?1 AND at > ?2 ORDER BY worker
