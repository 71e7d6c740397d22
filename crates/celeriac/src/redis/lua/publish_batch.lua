-- Accepts a batch that was pushed to its queue just before, in the same transaction: the way into Lua is dear for long texts,
-- and these never come here.
--
-- ARGV[4]  what the ids begin with      ARGV[5]  how many      ARGV[6]  name      ARGV[7]  queue
-- Returns 1, or 0 where it was taken off again, because something is known of it, or because the queue has priorities
-- between Celery's steps: that is for `commit`.

local prefix, count, name, queue = ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
local list = P .. queue
-- Fails, as the push did, where that is no list.
call('LLEN', list)
-- Results and records that one of these had are known by the first: they are all made at once.
if call('EXISTS', UNEVEN, OWN .. 'b:' .. prefix, OWN .. 't:' .. id_in(prefix, 0)) > 0 then
  call('LTRIM', list, count, -1)
  return 0
end
local before = tonumber(call('GET', COUNTER) or '0')
local last = string.format('%.0f', before + count)
call('SET', COUNTER, last)
call('HSET', OWN .. 'b:' .. prefix, 'n', string.format('%.0f', before + 1), 'c', count, 'k', name, 'q', queue, 'u', now_text)
call('XADD', TASKS, last .. '-0', 'b', prefix, 'c', count)
return 1
