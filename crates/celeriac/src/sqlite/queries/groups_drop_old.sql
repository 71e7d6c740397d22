-- Forgets old groups. ?1 before, ?2 how many.
DELETE FROM saved_group WHERE group_id IN (SELECT group_id FROM saved_group WHERE at < ?1 LIMIT ?2)
