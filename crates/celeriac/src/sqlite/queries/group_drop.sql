-- Forgets the shape of a group. ?1 group.
DELETE FROM saved_group WHERE group_id = ?1
