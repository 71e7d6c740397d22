-- Keeps the last numbers given out. ?1 position, ?2 token, ?3 number.
UPDATE counter SET position = ?1, token = ?2, number = ?3 WHERE one = 1
