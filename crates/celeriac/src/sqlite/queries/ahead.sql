-- How many messages are to be taken before one, in its line or due and not moved into it yet. ?1 queue, ?2 priority,
-- ?3 position, ?4 now, ?5 count up to. Returns (how many).
SELECT count(*) FROM (
    SELECT 1 FROM ready WHERE queue = ?1 AND priority <= ?2 AND (priority, position) < (?2, ?3)
    UNION ALL
    SELECT 1 FROM delayed WHERE due <= ?4 AND queue = ?1 AND (priority, position) < (?2, ?3)
    LIMIT ?5
)
