-- Stores a result unless a different final state is there. ?1 seq, ?2 state, ?3 now, ?4 result, ?5 traceback,
-- ?6 children, ?7 date_done, ?8 group, ?9 parent, ?10 extended, ?11 worker and ?12 started of the run that it ends.
INSERT INTO result (seq, state, at, result, traceback, children, date_done, group_id, parent_id, extended, worker, started)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
ON CONFLICT (seq) DO UPDATE SET state = excluded.state, at = excluded.at, result = excluded.result,
    traceback = excluded.traceback, children = excluded.children, date_done = excluded.date_done,
    group_id = excluded.group_id, parent_id = excluded.parent_id, extended = excluded.extended,
    worker = excluded.worker, started = excluded.started
WHERE result.state NOT IN ('SUCCESS', 'FAILURE', 'REVOKED') OR result.state = excluded.state
