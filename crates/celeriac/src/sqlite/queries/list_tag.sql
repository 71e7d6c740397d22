-- Tasks with a tag, newest first; answered from the index alone. ?1 tag, ?2 older than seq, ?3 how many. Returns (seq).
SELECT seq FROM tag WHERE tag = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3
