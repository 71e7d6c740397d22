-- A slice of results in the order of their tasks. ?1 after seq, ?2 how many. Returns (seq, at).
SELECT seq, at FROM result WHERE seq > ?1 ORDER BY seq LIMIT ?2
