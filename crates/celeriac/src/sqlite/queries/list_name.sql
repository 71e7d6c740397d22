-- Tasks of a name, newest first; answered from the index alone. ?1 name, ?2 older than seq, ?3 how many. Returns (seq).
SELECT seq FROM task WHERE name = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3
