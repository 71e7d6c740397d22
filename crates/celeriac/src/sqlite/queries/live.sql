-- Whether the message of a task lives. ?1 seq. Returns one row (whether, has a message) or nothing for an unknown one.
SELECT EXISTS (SELECT 1 FROM lease WHERE seq = ?1)
    OR EXISTS (SELECT 1 FROM delayed WHERE seq = ?1)
    OR EXISTS (SELECT 1 FROM dead WHERE seq = ?1)
    OR EXISTS (SELECT 1 FROM ready r
               WHERE r.queue = t.queue AND r.priority = t.priority AND r.position = t.position AND r.seq = t.seq),
    t.head IS NOT NULL
FROM task t WHERE t.seq = ?1
