-- Revokes tasks: what waits is reserved for the caller, what is held gets a mark.
--
-- ARGV[4] {worker, end of the lease in microseconds, now in Celery's seconds, how to stop what runs, as `i` of its record has
--   it, ids}
-- Returns for each {0} unknown, {1} finished, {2, holder}, {3, phase before, {reservation, id, queue, envelope, priority,
--   deliveries, begun, revoked, head}}, or {4, worker of Python's, empty where it has not told}.

local order = cmsgpack.unpack(ARGV[4])
local worker, lease_end, seconds, stop, ids = order[1], order[2], order[3], order[4], order[5]
local PAGE = 200

-- The element of a task by its place, as a line is in order; nothing where messages of Python's, which have no place, stand
-- in the way.
local function find_by_place(list, length, id, record)
  local mine = item_of(record)
  local low, high = 1, length
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local element = call('LINDEX', list, -middle)
    local order = element and order_of(element)
    if not order then return end
    if read(element) == id then return element end
    if comes_before(order, mine) then low = middle + 1 else high = middle - 1 end
  end
end

local function find_in_line(list, length, id)
  for from = 1, length, PAGE do
    local page = call('LRANGE', list, -(from + PAGE - 1), -from)
    for at = #page, 1, -1 do
      if find(page[at], id, 1, true) and read(page[at]) == id then return page[at] end
    end
  end
  -- An id that JSON writes with escapes.
  for from = 1, find(id, '[^%w%-_.]') and length or 0, PAGE do
    local page = call('LRANGE', list, -(from + PAGE - 1), -from)
    for at = #page, 1, -1 do
      if read(page[at]) == id then return page[at] end
    end
  end
end

-- Takes the message of a task off its line.
local function take_off(id, record)
  local list = list_of(record.q, priority_of(record))
  local length = call('LLEN', list)
  local element = find_by_place(list, length, id, record) or find_in_line(list, length, id)
  if element then call('LREM', list, -1, element) end
  return element
end

local function take(id, record, envelope, phase)
  local _, _, delivery_tag, exchange, routing_key = read(envelope)
  local token = number()
  delivery_tag = delivery_tag or (id .. '/' .. token)
  local tag = tag_of(token, record.n, delivery_tag, id)
  local count = tostring(deliveries_of(record) + 1)
  change(id, record, {'f', 'r', 'e', false, 'v', '1', 'c', count, 'w', token .. ' - ' .. worker})
  mark(id)
  kept[id] = envelope
  call('HSET', UNACKED, delivery_tag, held_form(envelope, exchange, routing_key))
  call('ZADD', UNACKED_INDEX, seconds, delivery_tag)
  call('ZADD', LEASES, lease_end, tag)
  return {3, phase, {tag, id, record.q, envelope, tonumber(record.p or '0'), tonumber(count), record.b and 1 or 0, 1,
    record.h or ''}}
end

local function reservation_of(id)
  for _, tag in ipairs(call('ZRANGE', LEASES, 0, -1)) do
    local _, of = taken_apart(tag)
    if of == id then return tag end
  end
end

local function revoke(id)
  local record = look(id)
  if not has_message(record) then return {is_finished(id) and 1 or 0} end
  if record.f == 's' or record.f == 'x' then return {1} end
  if record.f == 'r' then
    local tag = reservation_of(id)
    local _, _, holding = holder(record)
    -- Asked again without it, a termination stays one.
    local how = stop == '0' and record.i or stop
    change(id, record, {'v', '1', 'i', how})
    mark(id)
    if tag then call('HSET', INTERRUPTS, tag, how .. holding) end
    return {2, holding}
  end
  if record.f == 'd' then
    local envelope = call('HGET', MESSAGES, id)
    call('ZREM', OWN .. 'delayed:' .. record.q, id)
    return take(id, record, envelope, tonumber(record.e) > now and 'd' or 'q')
  end
  local envelope = take_off(id, record)
  if envelope then
    return take(id, record, envelope, record.e and tonumber(record.e) > now and 'd' or 'q')
  end
  -- A Python worker has taken it; whether it has begun we cannot know. The mark keeps us from running it again.
  change(id, record, {'v', '1'})
  if is_finished(id) then return {1} end
  local _, _, python = holder(record)
  return {4, record['~'] and python or ''}
end

local answers = {}
for at, id in ipairs(ids) do answers[at] = revoke(id) end
finish()
return answers
