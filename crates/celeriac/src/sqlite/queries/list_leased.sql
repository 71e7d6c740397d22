-- Tasks that are held, newest first. ?1 older than seq, ?2 how many. Returns (seq).
SELECT seq FROM lease WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2
