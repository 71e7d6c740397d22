-- The last numbers given out. Returns (position, token, number).
SELECT position, token, number FROM counter WHERE one = 1
