-- Notes a run that did not end its task. ?1 seq, ?2 worker, ?3 started, ?4 ended, ?5 outcome, ?6 error. Returns (number).
INSERT INTO attempt (seq, number, worker, started, ended, outcome, error)
VALUES (?1, 1 + coalesce((SELECT max(number) FROM attempt WHERE seq = ?1), 0), ?2, ?3, ?4, ?5, ?6)
RETURNING number
