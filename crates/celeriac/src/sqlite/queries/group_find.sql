-- The shape of a saved group. ?1 group. Returns (shape) or nothing.
SELECT shape FROM saved_group WHERE group_id = ?1
