-- Keeps the value of a durable step; the first value stays. ?1 seq, ?2 name, ?3 value.
INSERT INTO step (seq, name, value) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING
