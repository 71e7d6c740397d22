-- Says that a worker lives. ?1 name, ?2 expires, ?3 card.
INSERT INTO worker (name, expires, card) VALUES (?1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET expires = excluded.expires, card = excluded.card
