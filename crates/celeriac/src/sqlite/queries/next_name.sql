-- The next name of a task in the order of names. ?1 after. Returns (name) or nothing.
SELECT name FROM task WHERE name > ?1 ORDER BY name LIMIT 1
