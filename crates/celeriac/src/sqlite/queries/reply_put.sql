-- Keeps an answer; the first of a worker counts. ?1 ticket, ?2 worker, ?3 at, ?4 content.
INSERT INTO reply (ticket, worker, at, content) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING
