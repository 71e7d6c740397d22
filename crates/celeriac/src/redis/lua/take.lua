-- Reserves what is usual: messages in the form that Celery's clients and ours write, of priority 0, that wait on their
-- queue for the first time, or that a Python producer sent and nobody has seen yet.
--
-- ARGV[4]  worker                             ARGV[5]  end of the lease in microseconds
-- ARGV[6]  now in whole seconds               ARGV[7]  how many at most
-- ARGV[8…] queues in the order of their turns
-- Returns for each delivery three values: reservation, which names the task, queue, envelope. It ends before the first
-- message that is not usual, and then returns one value more: what follows is for `reserve`. Where other rules than these
-- are needed it does nothing, and returns just that value.

local worker, lease_end, seconds, limit = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local paused = call('SMEMBERS', OWN .. 'paused')
for at = 1, #paused do paused[paused[at]] = true end
local open, others = {}, {UNEVEN}
for at = 8, #ARGV do
  local queue = ARGV[at]
  if not paused[queue] then
    open[#open + 1] = queue
    local list = P .. queue .. '\6\022'
    others[#others + 1] = list .. '3'
    others[#others + 1] = list .. '6'
    others[#others + 1] = list .. '9'
  end
end
for from = 1, #others, 1000 do
  if call('EXISTS', unpack(others, from, math.min(from + 999, #others))) > 0 then return {1} end
end
for at = 1, #open do
  if call('ZCOUNT', OWN .. 'delayed:' .. open[at], '-inf', now_text) > 0 then return {1} end
end

local deliveries, count = {}, 0
local unacked, index, leases, messages = {}, {}, {}, {}
-- One token for all that is reserved here: with the number of the task it is unique.
local token, holding

-- What is no text of the envelope is told by its place in it; what is only compared is looked for with `find`, as to take
-- a text out is to make a string, which costs by its length.
local FRONT = '", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"lang": "'
local front_length = #FRONT

-- Takes those of `elements` that are usual; says how many.
local function take(queue, elements)
  -- What stands before the delivery tag, and behind the envelope where it is held.
  local way = '"delivery_info": {"exchange": "", "routing_key": "' .. queue
    .. '"}, "priority": 0, "body_encoding": "base64", "delivery_tag": "'
  local way_held = ', "", "' .. queue .. '"]'
  -- A delivery tag that is a UUID, and what closes the envelope.
  local way_from_end = #way + 38
  if not token then
    token = number()
    holding = token .. ' ' .. now_text .. ' ' .. worker
  end
  for place = 1, #elements do
    local element = elements[place]
    local at = #element - way_from_end
    if at <= 0 or find(element, way, at, true) ~= at or sub(element, -3) ~= '"}}' then return place - 1 end
    local body_end = find(element, '"', 11, true)
    if not body_end or find(element, FRONT, body_end, true) ~= body_end then return place - 1 end
    local _, id_start = find(element, '", "id": "', body_end + front_length, true)
    local id_end = id_start and find(element, '"', id_start + 1, true)
    if not id_end then return place - 1 end
    local id, delivery_tag = sub(element, id_start + 1, id_end - 1), sub(element, -39, -4)
    if id == '' or find(id, '\\', 1, true) or find(delivery_tag, '["\\]') then return place - 1 end
    local key, n = OWN .. 't:' .. id, nil
    local batch, place_there = batch_of(id)
    if batch and not had_record(batch, place_there) then
      n = number_in(batch, place_there)
      call('HSET', key, 'n', n, 'k', batch.k, 'q', queue, 'u', batch.u, 'f', 'r', 'w', holding)
    else
      local fields = call('HMGET', key, 'n', 'q')
      n = fields[1]
      -- One of ours that was never reserved has these, its name and when it was published, and nothing else.
      if n then
        if fields[2] ~= queue or call('HLEN', key) ~= 4 then return place - 1 end
        call('HSET', key, 'f', 'r', 'w', holding)
      else
        local task = match(element, '^[^"\\]*", "task": "([^"\\]*)", "id": "', body_end + front_length)
        if not task or call('EXISTS', key) == 1 then return place - 1 end
        n = enter(id)
        call('HSET', key, 'n', n, 'k', task, 'q', queue, 'u', now_text, 'f', 'r', 'w', holding)
      end
    end
    local tag = token .. '.' .. n .. ':36:' .. delivery_tag .. id
    local two, three = 2 * count, 3 * count
    count = count + 1
    unacked[two + 1], unacked[two + 2] = delivery_tag, '[' .. element .. way_held
    index[two + 1], index[two + 2] = seconds, delivery_tag
    leases[two + 1], leases[two + 2] = lease_end, tag
    messages[two + 1], messages[two + 2] = id, element
    deliveries[three + 1], deliveries[three + 2], deliveries[three + 3] = tag, queue, element
  end
  return #elements
end

local usual = true
-- Takes up to `wanted` off the head of a queue; says how many, or nothing where one was not usual, which stays where it was.
local function take_from(queue, wanted)
  local elements = call('RPOP', P .. queue, wanted)
  if not elements then return 0 end
  local taken = take(queue, elements)
  if taken == #elements then return taken end
  usual = false
  local left = {}
  for at = #elements, taken + 1, -1 do left[#left + 1] = elements[at] end
  send('RPUSH', P .. queue, left)
end

if #open == 1 then
  take_from(open[1], limit)
else
  local lines = {}
  for at = 1, #open do
    local length = call('LLEN', P .. open[at])
    if length > 0 then lines[#lines + 1] = {queue = open[at], length = length} end
  end
  take_shares(lines, limit, function(line, wanted) return take_from(line.queue, wanted) end)
end
if not usual then deliveries[3 * count + 1] = 1 end
if count == 0 then return deliveries end

store_counter()
send('HSET', MESSAGES, messages)
send('HSET', UNACKED, unacked)
send('ZADD', UNACKED_INDEX, index)
send('ZADD', LEASES, leases)
return deliveries
