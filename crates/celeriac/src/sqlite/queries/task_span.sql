-- The numbers of the first and the last task. Returns (first, last), both NULL when there is none.
SELECT (SELECT min(seq) FROM task), (SELECT max(seq) FROM task)
