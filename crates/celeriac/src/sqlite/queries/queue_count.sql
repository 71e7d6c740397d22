-- Counts messages that came to wait or stopped waiting, once a commit. ?1 queue, ?2 ready, ?3 delayed: differences.
UPDATE queue SET ready = ready + ?2, delayed = delayed + ?3 WHERE id = ?1
