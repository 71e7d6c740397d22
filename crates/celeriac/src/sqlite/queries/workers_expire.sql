-- Forgets workers that have not said for too long that they live. ?1 now.
DELETE FROM worker WHERE expires <= ?1
