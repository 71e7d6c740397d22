-- Forgets a final state, since its task runs again. ?1 seq.
DELETE FROM result WHERE seq = ?1 AND state IN ('SUCCESS', 'FAILURE', 'REVOKED')
