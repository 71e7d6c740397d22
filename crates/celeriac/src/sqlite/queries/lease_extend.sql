-- Starts a lease over. ?1 seq, ?2 token, ?3 expires.
UPDATE lease SET expires = ?3 WHERE seq = ?1 AND token = ?2
