-- The newest task up to a number, and when it was accepted. ?1 seq. Returns (seq, accepted) or nothing.
SELECT seq, coalesce(accepted, published) FROM task WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1
