-- Tasks that wait in any line, in no order. ?1 how many. Returns (seq).
SELECT seq FROM ready LIMIT ?1
