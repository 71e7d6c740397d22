-- Says that a worker is gone. ?1 name.
DELETE FROM worker WHERE name = ?1
