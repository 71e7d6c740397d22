-- The newest report of progress in a task's log. ?1 seq. Returns (position, event, data, at) or nothing.
SELECT position, event, data, at FROM log WHERE seq = ?1 AND event = 'progress' ORDER BY position DESC LIMIT 1
