-- Reserves messages: first those that have come due join their lines, then the lines are taken from their heads.
--
-- ARGV[4] {worker, end of the lease in microseconds, now in Celery's seconds, limit, queues in the order of their turns};
--         times as texts
-- Returns for each delivery four values: reservation, which names the task, queue, envelope, and 0 or, where it is not
-- simply one of ours that is delivered for the first time, {priority, deliveries, begun, revoked, head}, where head is
-- empty unless it is another than the envelope's.

local order = cmsgpack.unpack(ARGV[4])
local worker, lease_end, seconds, limit, queues = order[1], order[2], order[3], order[4], order[5]

local paused = {}
for _, queue in ipairs(call('SMEMBERS', OWN .. 'paused')) do paused[queue] = true end
local open = {}
for _, queue in ipairs(queues) do
  let_come_due(queue)
  if not paused[queue] then open[#open + 1] = queue end
end
local deliveries, count = {}, 0
local unacked, index, leases, messages = {}, {}, {}, {}
-- One token for all that is reserved here: with the id of the task it is unique.
local token, holding
local taken = {}

local function bury_unread(element, queue)
  local n = number()
  local id = 'unread-' .. n
  local record = look(id)
  change(id, record, {'n', introduce(id, record), 'q', queue, 'u', now_text, 'f', 'x', 'd', n, 'y', now_text,
    'm', 'it is no envelope of a task: not a JSON object with an id'})
  call('ZADD', DEAD, n, id)
  kept[id] = element
end

-- A message of an id that this store holds, or has waiting elsewhere. Says whether it is to be delivered after all.
local function meet_again(id, record, element, delivery_tag, entry)
  if record.f == 'r' then
    local held_token = holder(record)
    local tag = tag_of(held_token, record.n, delivery_tag, id)
    local ends = call('ZSCORE', LEASES, tag)
    if ends and tonumber(ends) > now then
      -- Somebody else restored what is held here and runs: it goes back.
      unacked[#unacked + 1] = delivery_tag
      unacked[#unacked + 1] = entry
      index[#index + 1] = seconds
      index[#index + 1] = delivery_tag
      return false
    end
    if ends then
      -- Its worker is lost, and a Python worker was the first to notice.
      note_run(id, record, 'lost', ends)
      change(id, record, {'b', record.b or record.g, 'g', false, 'i', false})
      call('ZREM', LEASES, tag)
      call('HDEL', INTERRUPTS, tag)
      if not record.x then call('HDEL', MARKS, id) end
      return true
    end
  end
  -- Another message of the same id, as a Python task's retry sent from within its run: it waits its turn.
  call('LPUSH', OWN .. 'n:' .. id, element)
  change(id, record, {'x', tostring(tonumber(record.x or '0') + 1)})
  mark(id)
  return false
end

-- Makes a message fit to be reserved that is not simply one of ours which waits; says whether it is.
local function prepare(element, id, task, delivery_tag, entry, queue, priority)
  if taken[id] == delivery_tag then return false end
  records[id] = nil
  local record = look(id)
  if brief[id] then own_record(id, record) end
  if not record.u then
    -- A Python producer's.
    change(id, record, {'n', introduce(id, record), 'k', task, 'q', queue,
      'p', priority > 0 and tostring(priority), 'u', now_text})
  elseif record.f == 's' or record.f == 'x' then
    if record['='] == delivery_tag then return false end
    unfold(id, record)
    if record.f == 'x' then call('ZREM', DEAD, id) end
    change(id, record, {'a', record.a or record.u, 'o', number(), 'k', task ~= '' and task or record.k, 'q', queue,
      'p', priority > 0 and tostring(priority), 'u', now_text, 'c', false, 'b', false, 'g', false, 'v', false,
      'z', false, 'h', false, 'd', false, 'm', false, 'y', false, '=', false, 'f', false})
  elseif record.f then
    -- It waits for its time, or is held.
    if not meet_again(id, record, element, delivery_tag, entry) then return false end
    change(id, record, {'c', tostring(deliveries_of(record)), 'f', false})
  end
  if record.q ~= queue then change(id, record, {'q', queue}) end
  if record.e then
    if tonumber(record.e) > now then
      -- It was left for a Python worker to wait with.
      call('ZADD', OWN .. 'delayed:' .. queue, record.e, id)
      kept[id] = element
      change(id, record, {'f', 'd'})
      return false
    end
    change(id, record, {'e', false})
  end
  return record
end

local function take(element, queue)
  local id, task, delivery_tag, exchange, routing_key, priority = read(element)
  if not id then return bury_unread(element, queue) end
  local entry = held_form(element, exchange, routing_key)
  if not token then
    token = number()
    holding = token .. ' ' .. now_text .. ' ' .. worker
  end
  delivery_tag = delivery_tag or (id .. '/' .. token)
  local key = task_key(id)
  local n, q, p, f, e, elsewhere, c, b, v, h, logged =
    unpack(call('HMGET', key, 'n', 'q', 'p', 'f', 'e', '~', 'c', 'b', 'v', 'h', 'L'))
  if elsewhere then call('HDEL', key, '~') end
  if not n or f or e or q ~= queue then
    local record = prepare(element, id, task, delivery_tag, entry, queue, priority)
    if not record then return end
    n, c, b, v, h, p, logged = record.n, record.c, record.b, record.v, record.h, record.p, record.L
  end
  if logged then mark(id) end
  records[id] = nil
  taken[id] = delivery_tag
  local deliveries_now = 1
  if c then
    deliveries_now = tonumber(c) + 1
    call('HSET', key, 'f', 'r', 'w', holding, 'c', deliveries_now)
  else
    call('HSET', key, 'f', 'r', 'w', holding)
  end
  local tag = tag_of(token, n, delivery_tag, id)
  local at = #index
  unacked[at + 1], unacked[at + 2] = delivery_tag, entry
  index[at + 1], index[at + 2] = seconds, delivery_tag
  local two, four = 2 * count, 4 * count
  count = count + 1
  leases[two + 1], leases[two + 2] = lease_end, tag
  messages[two + 1], messages[two + 2] = id, element
  deliveries[four + 1], deliveries[four + 2], deliveries[four + 3] = tag, queue, element
  deliveries[four + 4] = (p or c or b or v or h)
    and {p and tonumber(p) or 0, deliveries_now, b and 1 or 0, v and 1 or 0, h or ''} or 0
end

-- The heads of several lists whose priorities may differ: the least goes first.
local function take_least(lines)
  local least, at_least
  for at, line in ipairs(lines) do
    local head = call('LINDEX', line.list, -1)
    if head then
      local _, _, _, _, _, priority = read(head)
      priority = priority or 0
      if not least or priority < least then least, at_least = priority, at end
    end
  end
  if not at_least then return false end
  local line = table.remove(lines, at_least)
  lines[#lines + 1] = line
  take(call('RPOP', line.list), line.queue)
  return true
end

local function take_some(line, wanted)
  local before = count
  for _, element in ipairs(call('RPOP', line.list, wanted) or {}) do take(element, line.queue) end
  return count - before
end

for _, step in ipairs({0, 3, 6, 9}) do
  if count < limit then
    local lines, mixed = {}, false
    for _, queue in ipairs(open) do
      local list = P .. queue .. STEPS[step]
      lines[#lines + 1] = {list = list, queue = queue}
      mixed = mixed or is_uneven(list)
    end
    if mixed then
      while count < limit and take_least(lines) do end
      for _, line in ipairs(lines) do
        if is_uneven(line.list) and call('EXISTS', line.list) == 0 then call('SREM', UNEVEN, line.list) end
      end
    else
      local waiting = {}
      for _, line in ipairs(lines) do
        line.length = call('LLEN', line.list)
        if line.length > 0 then waiting[#waiting + 1] = line end
      end
      take_shares(waiting, limit - count, take_some)
    end
  end
end

finish()
send('HSET', MESSAGES, messages)
send('HSET', UNACKED, unacked)
send('ZADD', UNACKED_INDEX, index)
send('ZADD', LEASES, leases)
return deliveries
