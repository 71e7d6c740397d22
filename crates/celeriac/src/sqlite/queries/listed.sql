-- What a list shows of a task. ?1 seq. Returns the columns of place.sql, then (id, accepted, result at, date_done, ended
-- by, started of the run that ended it, since of the present one).
SELECT t.seq, t.name, t.queue, q.name, t.priority, t.position, t.published, t.head IS NOT NULL,
    s.state, r.seq IS NOT NULL, d.seq IS NOT NULL, l.seq IS NOT NULL, x.seq IS NOT NULL,
    d.due, l.worker,
    coalesce(r.deliveries, d.deliveries, l.deliveries, x.deliveries, 0),
    coalesce(r.begun, d.begun, l.begun > 0, 0),
    coalesce(r.revoked, d.revoked, l.revoked, x.revoked, 0),
    t.id, coalesce(t.accepted, t.published), s.at, s.date_done, s.worker, s.started, l.since
FROM task t
LEFT JOIN queue q ON q.id = t.queue
LEFT JOIN result s ON s.seq = t.seq
LEFT JOIN ready r ON r.queue = t.queue AND r.priority = t.priority AND r.position = t.position AND r.seq = t.seq
LEFT JOIN delayed d ON d.seq = t.seq
LEFT JOIN lease l ON l.seq = t.seq
LEFT JOIN dead x ON x.seq = t.seq
WHERE t.seq = ?1
