-- Notes what workers that are not ours tell of the tasks they run, so that lists, logs and streams have these tasks, too.
--
-- ARGV[4]  {TTL of results; records kept in a log; batches kept in the feed}
-- ARGV[5…] {id, sent | received | started | retried | ended, when in microseconds, worker, name, queue, record for the log},
--   each of the last three empty where it is not known
-- Returns how many were noted. What our own workers do they write themselves, under their leases: of a task that one of
-- them holds or held nothing is noted, nor is what our workers tell.

local settings = cmsgpack.unpack(ARGV[4])
local log_bound, feed_bound = settings[2], settings[3]

local ours = {}
for _, worker in ipairs(call('ZRANGE', OWN .. 'workers', 0, -1)) do ours[match(worker, '^[^/]*')] = true end

-- Appends a record to the log of a task, and to the feed.
local function tell(id, record, data)
  local key = OWN .. 'l:' .. id
  unfold(id, record)
  if not record.L then change(id, record, {'L', '1'}) end
  local length = call('RPUSH', key, now_text .. ' 5 state' .. data)
  local trimmed = tonumber(record.l or '0')
  call('XADD', FEED, 'MAXLEN', '~', feed_bound, number() .. '-0', record.n, trimmed + length)
  if length > log_bound then
    call('LTRIM', key, -log_bound, -1)
    change(id, record, {'l', tostring(trimmed + length - log_bound)})
  end
end

local function note(order)
  local id, what, at, worker, name, queue, data = unpack(order)
  if ours[worker] then return false end
  local record = look(id)
  if record.f then return false end
  if not has_message(record) then
    -- Not one of which only the end was heard: there is nothing to show of it but its result.
    if name == '' then return false end
    change(id, record, {'n', introduce(id, record), 'k', name, 'q', queue, 'u', at})
  end
  if what == 'sent' then return true end
  local _, since = holder(record)
  if what == 'retried' then
    if not record['~'] then return false end
    change(id, record, {'~', false, 'w', false})
  elseif what == 'ended' then
    change(id, record, {'~', false, 'f', 's', 'z', at, 'w', '- ' .. (since or at) .. ' ' .. worker})
  else
    since = what == 'started' and at or since
    change(id, record, {'~', at, 'w', '- ' .. (since or '-') .. ' ' .. worker})
  end
  if data ~= '' then tell(id, record, data) end
  return true
end

local noted = 0
for at = 5, #ARGV do
  if note(cmsgpack.unpack(ARGV[at])) then noted = noted + 1 end
end
finish()
return noted
