-- A stored result. ?1 id. Returns (state, result, traceback, children, date_done, group, parent, extended) or nothing.
SELECT s.state, s.result, s.traceback, s.children, s.date_done, s.group_id, s.parent_id, s.extended
FROM task t JOIN result s ON s.seq = t.seq WHERE t.id = ?1 AND s.state <> 'PENDING'
