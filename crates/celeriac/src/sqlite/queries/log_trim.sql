-- Forgets the oldest records of a log. ?1 seq, ?2 last position to forget.
DELETE FROM log WHERE seq = ?1 AND position <= ?2
