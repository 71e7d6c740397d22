-- Pauses a queue or lets it go on. ?1 queue, ?2 whether it is paused.
UPDATE queue SET paused = ?2 WHERE id = ?1
