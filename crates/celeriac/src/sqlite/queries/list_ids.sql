-- Tasks whose ids lie in a range, in no order of age; answered from the index alone. ?1 from, ?2 up to, ?3 how many.
-- Returns (seq).
SELECT seq FROM task WHERE id >= ?1 AND id < ?2 LIMIT ?3
