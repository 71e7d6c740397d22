-- Notes that a message is settled without a result. ?1 seq, ?2 now, ?3 worker and ?4 started of the run that ended with
-- that, or NULL: then those of a result that is there stay.
INSERT INTO result (seq, state, at, worker, started) VALUES (?1, 'PENDING', ?2, ?3, ?4)
ON CONFLICT (seq) DO UPDATE SET at = excluded.at, worker = coalesce(excluded.worker, worker),
    started = coalesce(excluded.started, started)
