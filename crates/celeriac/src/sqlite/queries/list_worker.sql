-- Tasks that one incarnation of a worker ended, newest first; answered from the index alone. ?1 worker, ?2 older than seq,
-- ?3 how many. Returns (seq).
SELECT seq FROM result WHERE worker = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3
