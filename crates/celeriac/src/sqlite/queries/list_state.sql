-- Tasks of a stored state that is neither SUCCESS nor PENDING, newest first. ?1 state, ?2 older than seq, ?3 how many.
-- Returns (seq). The conditions without a parameter are those of the index.
SELECT seq FROM result WHERE state = ?1 AND state <> 'SUCCESS' AND state <> 'PENDING' AND seq < ?2
ORDER BY seq DESC LIMIT ?3
