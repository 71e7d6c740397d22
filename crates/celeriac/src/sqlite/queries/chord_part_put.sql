-- Keeps the end of a header task; a second one of the same task is dropped. ?1 chord, ?2 task id, ?3 place, ?4 state,
-- ?5 result.
INSERT INTO chord_part (chord, task_id, place, state, result) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING
