-- Gives out the number of a new command. Returns (number).
UPDATE counter SET command = command + 1 WHERE one = 1 RETURNING command
