-- Tasks whose messages lie dead, newest first. ?1 older than seq, ?2 how many. Returns (seq).
SELECT seq FROM dead WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2
