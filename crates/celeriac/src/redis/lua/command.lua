-- Puts a command into the log of commands, once, and tells it to Python's workers where it comes from here.
--
-- KEYS[1]  any key of ours
-- ARGV[1]  the key by which the command is known, wherever it is heard
-- ARGV[2]  the key of the counter       ARGV[3]  the key of the log
-- ARGV[4]  the command                  ARGV[5]  commands kept
-- ARGV[6]  milliseconds that the log and what is known of the command are kept
-- ARGV[7]  the key that says where answers go, or ''    ARGV[8]  where they go
-- ARGV[9]  the channel to publish on, or ''             ARGV[10] what to publish
-- Returns the number of the command, or 0 when it was in the log before.

local call = redis.call
local known, counter, log, command, kept, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if not call('SET', known, '', 'NX', 'PX', ttl) then return 0 end
local number = call('INCR', counter)
call('XADD', log, 'MAXLEN', kept, number .. '-0', 'c', command)
call('PEXPIRE', log, ttl)
if ARGV[7] ~= '' then call('SET', ARGV[7], ARGV[8], 'PX', ttl) end
if ARGV[9] ~= '' then call('PUBLISH', ARGV[9], ARGV[10]) end
return number
