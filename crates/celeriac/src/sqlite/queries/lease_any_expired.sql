-- Whether a lease has passed. ?1 now. Returns (whether).
SELECT EXISTS (SELECT 1 FROM lease WHERE expires <= ?1)
