-- Opens a chord; one that is open stays as it is. ?1 group, ?2 size, ?3 now, ?4 body.
INSERT INTO chord (group_id, size, ended, at, body) VALUES (?1, ?2, 0, ?3, ?4) ON CONFLICT (group_id) DO NOTHING
