-- The newest number of the feed that was given out, also when its record is gone. Returns (number).
SELECT number FROM counter WHERE one = 1
