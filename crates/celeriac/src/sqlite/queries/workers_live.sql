-- The workers that live, by name. ?1 now. Returns (name, expires, card).
SELECT name, expires, card FROM worker WHERE expires > ?1 ORDER BY name
