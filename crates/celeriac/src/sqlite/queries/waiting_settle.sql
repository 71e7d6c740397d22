-- Notes that the tasks that wait on a queue are settled, by no worker. ?1 queue, ?2 now.
INSERT INTO result (seq, state, at)
SELECT seq, 'PENDING', ?2 FROM (
    SELECT seq FROM ready WHERE queue = ?1 UNION ALL SELECT seq FROM delayed WHERE queue = ?1
) WHERE true
ON CONFLICT (seq) DO UPDATE SET at = excluded.at, worker = NULL, started = NULL
