-- The number of the newest command, and how many answers there have been. Returns (command, reply).
SELECT command, reply FROM counter WHERE one = 1
