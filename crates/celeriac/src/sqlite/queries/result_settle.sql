-- Notes that a message is settled without a result. ?1 seq, ?2 now.
INSERT INTO result (seq, state, at) VALUES (?1, 'PENDING', ?2)
ON CONFLICT (seq) DO UPDATE SET at = excluded.at
