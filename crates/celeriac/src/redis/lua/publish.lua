-- Publishes what nobody has heard of, as most messages are: of priority 0, not put off, for queues without priorities
-- between Celery's steps.
--
-- ARGV[4…] for each message: id, name, queue, tags as JSON or nothing, its head where the envelope has another or nothing,
--          envelope
-- Returns 1, or 0 where nothing was done, because of one of these something is known: that is for `commit`.

local keys, seen, lists, queues = {UNEVEN}, {}, {}, {}
for at = 4, #ARGV, 6 do
  local id = ARGV[at]
  if seen[id] or batch_of(id) then return 0 end
  seen[id] = true
  keys[#keys + 1] = OWN .. 't:' .. id
  keys[#keys + 1] = R .. 'celery-task-meta-' .. id
end
for from = 1, #keys, 1000 do
  if call('EXISTS', unpack(keys, from, math.min(from + 999, #keys))) > 0 then return 0 end
end
local key_at = 2
for at = 4, #ARGV, 6 do
  local id, queue, tags, head = ARGV[at], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local n, key = enter(id), keys[key_at]
  key_at = key_at + 2
  call('HSET', key, 'n', n, 'k', ARGV[at + 1], 'q', queue, 'u', now_text)
  if tags ~= '' then call('HSET', key, 'j', tags) end
  if head ~= '' then call('HSET', key, 'h', head) end
  local envelopes = lists[queue]
  if not envelopes then
    envelopes = {}
    lists[queue] = envelopes
    queues[#queues + 1] = queue
  end
  envelopes[#envelopes + 1] = ARGV[at + 5]
end
for _, queue in ipairs(queues) do send('LPUSH', P .. queue, lists[queue]) end
store_counter()
return 1
