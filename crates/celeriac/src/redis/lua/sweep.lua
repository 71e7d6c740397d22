-- Forgets tasks: those named, or those done before a time, with all that belongs to them.
--
-- ARGV[4] {ids}, or {nil, done before in microseconds, how many to forget, how many to look at}
-- Returns how many were forgotten.

local order = cmsgpack.unpack(ARGV[4])
local ids, done_before, limit, look_max = order[1], order[2], order[3], order[4]
local forgotten = 0
local SWEPT = OWN .. 'swept'
local UNUSED_MAX = 7 * 86400

local function forget(id)
  local record = look(id)
  if not is_known(record) then
    if is_finished(id) then call('DEL', meta_key(id)) end
    return
  end
  if not is_finished(id) and not (has_message(record) and record.f == 's') then return end
  forgotten = forgotten + 1
  call('DEL', meta_key(id), OWN .. 'l:' .. id, OWN .. 's:' .. id)
  states[id] = ''
  if is_live(record) then
    -- The result came ahead of the acknowledgement: the message has still to be dealt with.
    change(id, record, {'z', false, 'l', false, 'r', false, 'L', false})
    return
  end
  call('DEL', OWN .. 't:' .. id, OWN .. 'a:' .. id)
  leave(id, record.n)
  kept[id] = false
  records[id] = {}
end

-- Whether a message that should be waiting was taken by a Python worker: its line is in order, and has come to one that
-- was published after it.
local function was_taken(id, record)
  if record.f or not has_message(record) or (record.e and tonumber(record.e) > now) then return false end
  if is_finished(id) then return true end
  -- Its worker was heard of: it runs, unless it was not heard of for as long as results are kept.
  if record['~'] then return tonumber(record['~']) < done_before end
  local head = call('LINDEX', list_of(record.q, priority_of(record)), -1)
  if not head then return true end
  local order_of_head = order_of(head)
  return order_of_head ~= nil and comes_before(item_of(record, ''), order_of_head)
end

if ids then
  for _, id in ipairs(ids) do forget(id) end
  finish()
  return forgotten
end

local from = call('GET', SWEPT) or '0'
local looked, wrapped = 0, from == '0'
local function is_enough() return looked >= look_max or forgotten >= limit end

-- Says whether it was known.
local function sweep_one(id)
  local record = look(id)
  looked = looked + 1
  if not is_known(record) then return false end
  if was_taken(id, record) then
    change(id, record, {'f', 's', 'z', record.z or now_text})
  elseif not is_live(record) and record.z and tonumber(record.z) < done_before then
    if not has_message(record) or record.f == 's' then forget(id) end
  end
  return true
end

-- Those of a batch that come after `from`. It leaves the order when the last of them does.
local function sweep_batch(entry, prefix, last, count)
  if not batch_named(prefix) then
    call('XDEL', TASKS, entry)
    from = string.format('%.0f', last)
    return
  end
  for n = math.max(last - count, tonumber(from)) + 1, last do
    if is_enough() then return end
    sweep_one(id_in(prefix, n - (last - count) - 1))
    from = string.format('%.0f', n)
  end
end

while not is_enough() do
  local entries = call('XRANGE', TASKS, '(' .. from .. '-0', '+', 'COUNT', 100)
  if #entries == 0 then
    from = '0'
    if wrapped then break end
    wrapped = true
  end
  for _, entry in ipairs(entries) do
    if is_enough() then break end
    local last, what = match(entry[1], '^%d+'), entry[2]
    if what[1] == 'b' then
      sweep_batch(entry[1], what[2], tonumber(last), tonumber(what[4]))
    else
      if not sweep_one(what[2]) then call('XDEL', TASKS, entry[1]) end
      from = last
    end
  end
end
call('SET', SWEPT, from)

-- Chords and groups as old, by the hundred.
local old = call('ZRANGEBYSCORE', GROUPS, '-inf', '(' .. string.format('%.0f', done_before), 'LIMIT', 0, 100)
for _, member in ipairs(old) do
  local group = sub(member, 2)
  local key = R .. 'celery-taskset-meta-' .. group
  if sub(member, 1, 1) == 'c' then
    call('DEL', key .. '.s', key .. '.t', key .. '.j', key .. '.d', key .. '.c', OWN .. 'c:' .. group)
    call('ZREM', READY, group)
  else
    call('DEL', key)
  end
end
send('ZREM', GROUPS, old)

-- Queues that nobody has used for a week.
for _, name in ipairs(call('ZRANGEBYSCORE', OWN .. 'queues', '-inf', now / 1e6 - UNUSED_MAX, 'LIMIT', 0, 100)) do
  local empty = call('EXISTS', P .. name, P .. name .. STEPS[3], P .. name .. STEPS[6], P .. name .. STEPS[9],
    OWN .. 'delayed:' .. name) == 0
  if empty then call('ZREM', OWN .. 'queues', name) end
end
call('ZREMRANGEBYSCORE', OWN .. 'consumers', '-inf', now / 1e6 - UNUSED_MAX)
finish()
return forgotten
