-- Finds out what the user may not do, of all that the scripts and the link do with keys.
--
-- KEYS[1]  any key of ours
-- ARGV[1]  a key of this store, and a channel, that nothing else uses
-- ARGV[2…] commands, each with its arguments, one text a command, parted by spaces; `K` stands for the key
-- Returns the commands that may not be run, or the key where that may not be touched.

local key = ARGV[1]
local lacks = {}
for at = 2, #ARGV do
  local words = ARGV[at]
  local command = {}
  for word in string.gmatch(words, '%S+') do command[#command + 1] = word == 'K' and key or word end
  -- Whatever else is wrong, as the type of the key, says that it may be run.
  local answer = redis.pcall(unpack(command))
  if type(answer) == 'table' and answer.err then
    -- Redis 7.0 has one text for all, later versions name what it is about.
    if string.find(answer.err, 'access', 1, true) or string.find(answer.err, 'channel', 1, true) then return key end
    if string.find(answer.err, 'run this command', 1, true) or string.find(answer.err, 'NOPERM', 1, true)
      or string.find(answer.err, 'no permissions', 1, true) then
      lacks[#lacks + 1] = command[1]
    end
  end
end
return lacks
