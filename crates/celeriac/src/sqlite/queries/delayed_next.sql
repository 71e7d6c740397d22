-- When the next message becomes due. Returns (due) or (NULL).
SELECT min(due) FROM delayed
