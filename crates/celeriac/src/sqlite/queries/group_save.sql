-- Keeps the shape of a group. ?1 group, ?2 shape, ?3 now.
INSERT INTO saved_group (group_id, shape, at) VALUES (?1, ?2, ?3)
ON CONFLICT (group_id) DO UPDATE SET shape = excluded.shape, at = excluded.at
