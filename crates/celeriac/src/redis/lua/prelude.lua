-- The rules by which messages move. Every script is `basics.lua`, this prelude, and a body of its own, whose orders are
-- packed with msgpack; only those for what is usual (`publish`, `take`, `settle`) do without these rules, and leave alone
-- what they would be needed for.
--
-- The record of a task is a small hash, or, while it waits with others of its batch, theirs: see `batch.lua`. A field that is
-- absent is false, zero or empty:
--   n  its number in the order of acceptance       o  its place in line, where that is not n
--   k  its name        q  its queue                p  its priority     j  its tags, a JSON array
--   u  when it was published; absent where only a result was stored     a  when it was accepted first, where not u
--   f  phase: absent queued, d delayed, r reserved, s settled, x dead   e  when it is due, also of one that is queued for
--      a Python worker to wait with, as Celery's workers do
--   c  deliveries, where they are not 1 for what is held or was, and 0 for what waits
--   b  begun by a worker that was lost             g  begun by its present holder
--   v  revoked         i  its holder is to be told: 0, or 1 to terminate it, or the character as far after 1 as the signal to
--                         terminate it by has for a number
--   w  who holds it or held it last: token of the reservation, since when (- where it is not run), worker
--   z  when it was done                            x  messages of its id that wait for it to be settled
--   d  number of the dead letter    m  why it died    y  when           l  log records trimmed
--   r  position of its newest progress             h  head of its message, where the envelope has another
--   ~  when a worker that is not ours was last heard of it, while that has it: its phase is then absent, its token -
--   =  delivery tag of the message it was settled under, where somebody else had restored that meanwhile
--   E  the one entry of its log, where that is its end: most tasks have no other, and need no list for it
--   L  it has, or had, a list for its log
--
-- A reservation is named token.number of the task:length of the delivery tag:delivery tag, and the id of the task. All
-- who settle need of most tasks is in that name; `celeriac:marks` has those held of which more must be known.
--
-- The envelope of what is held stands in `unacked` in Celery's form, and in the messages as it is, where it stays when
-- the task is settled: a long string is dear to make in Lua, and so it is moved once.
--
-- Records are read once a script; lists, leases and messages are written once: `finish` writes what was gathered.

local now = tonumber(now_text)
local INTERRUPTS, DEAD = OWN .. 'interrupts', OWN .. 'dead'
local READY, GROUPS = OWN .. 'ready', OWN .. 'groups'
local STEPS = {[0] = '', [3] = '\6\0223', [6] = '\6\0226', [9] = '\6\0229'}
local STEP_OF = {[0] = 0, 0, 0, 3, 3, 3, 6, 6, 6, 9}
local WALK_MAX = 256
local ATTEMPTS_MAX = 20
local DUE_MAX = 500

-- Records.
local records = {}
local task_keys = {}
-- Those that have none of their own yet: see `batch.lua`.
local brief = {}

local function look(id)
  local record = records[id]
  if record then return record end
  local key = OWN .. 't:' .. id
  local flat = call('HGETALL', key)
  record = {}
  for at = 1, #flat, 2 do record[flat[at]] = flat[at + 1] end
  if not flat[1] then
    local batch, place = batch_of(id)
    if batch and call('GETBIT', batch.bits, place) == 0 then
      record = {n = number_in(batch, place), k = batch.k, q = batch.q, u = batch.u}
      brief[id] = true
    end
  end
  records[id] = record
  task_keys[id] = key
  return record
end

-- Gives a task a record of its own that had that of its batch.
local function own_record(id, record)
  brief[id] = nil
  had_record(batch_of(id))
  call('HSET', task_keys[id], 'n', record.n, 'k', record.k, 'q', record.q, 'u', record.u)
end

-- Changes a record: `changes` has fields and values by turns; false clears a field.
local function change(id, record, changes)
  if brief[id] then own_record(id, record) end
  local sets, clears = {}, nil
  for at = 1, #changes, 2 do
    local field, value = changes[at], changes[at + 1]
    if value then
      record[field] = value
      sets[#sets + 1] = field
      sets[#sets + 1] = value
    elseif record[field] then
      record[field] = nil
      clears = clears or {}
      clears[#clears + 1] = field
    end
  end
  if sets[1] then call('HSET', task_keys[id], unpack(sets)) end
  if clears then call('HDEL', task_keys[id], unpack(clears)) end
end

local function task_key(id)
  local key = task_keys[id]
  if not key then
    key = OWN .. 't:' .. id
    task_keys[id] = key
  end
  return key
end

-- More must be known of this one when it is settled than its reservation tells. A mark that is `b` is of one that was begun,
-- and of which nothing else need be known.
local function mark(id) call('HSET', MARKS, id, '1') end

-- Who holds a task or held it last: token, since when (nothing where it was not run), worker.
local function holder(record)
  if not record.w then return end
  local token, since, worker = match(record.w, '^(%S+) (%S+) (.*)$')
  return token, since ~= '-' and since or nil, worker
end

local function deliveries_of(record)
  local f = record.f
  return tonumber(record.c or ((f == 'r' or f == 's' or f == 'x') and '1' or '0'))
end

local function is_known(record) return record.n ~= nil end
local function has_message(record) return record.u ~= nil end
-- Its message may still move by itself or by an operator's hand.
local function is_live(record) return record.u ~= nil and record.f ~= 's' end
local function place_of(record) return tonumber(record.o or record.n) end
local function priority_of(record) return tonumber(record.p or '0') end

-- Takes a task out of the order of acceptance, where it has this number.
local function leave(id, n)
  local batch, place = batch_of(id)
  if not batch or number_in(batch, place) ~= n then
    call('XDEL', TASKS, n .. '-0')
  elseif call('HINCRBY', batch.key, 'g', '1') == batch.count then
    call('XDEL', TASKS, number_in(batch, batch.count - 1) .. '-0')
    call('DEL', batch.key, batch.bits)
    batches[batch.prefix] = false
  end
end

-- The same as `enter` for one that may have a number already.
local function introduce(id, record)
  if record.n then leave(id, record.n) end
  record.n = enter(id)
  return record.n
end

-- Reservations.
local function tag_of(token, n, delivery_tag, id)
  local length = #delivery_tag
  return token .. '.' .. n .. (length == 36 and ':36:' or ':' .. length .. ':') .. delivery_tag .. id
end

-- Delivery tag, id, and number of the task that a reservation names.
local function taken_apart(tag)
  local dot = find(tag, '.', 1, true)
  local usual = dot and find(tag, ':36:', dot, true)
  -- The first colon after the dot: what follows may be anything.
  if usual and usual == find(tag, ':', dot, true) then
    return sub(tag, usual + 4, usual + 39), sub(tag, usual + 40), sub(tag, dot + 1, usual - 1)
  end
  local n, length, from = match(tag, '^%d+%.(%d+):(%d+):()')
  if not n then return end
  local to = from + tonumber(length)
  return sub(tag, from, to - 1), sub(tag, to), n
end

-- What an envelope says of where it belongs: id, task, delivery tag, exchange and routing key as JSON texts, priority.
-- Nothing when it is not an envelope. What Celery and we write is read by its form; anything else as JSON.
local HEADERS = '^", "content%-encoding": "[^"\\]*", "content%-type": "[^"\\]*", "headers": {"lang": "[^"\\]*", "task": "([^"\\]*)", "id": "([^"\\]+)"'
local INFO = '^"delivery_info": {"exchange": ("[^"\\]*"), "routing_key": ("[^"\\]*")}, "priority": (%d+), "body_encoding": "base64", "delivery_tag": "([^"\\]+)"}}$'

local function text(value)
  if type(value) == 'string' then return value end
  if type(value) == 'number' then return tostring(value) end
end

local function read_slowly(envelope)
  local well, whole = pcall(cjson.decode, envelope)
  if not well or type(whole) ~= 'table' then return end
  local headers = type(whole.headers) == 'table' and whole.headers or {}
  local properties = type(whole.properties) == 'table' and whole.properties or {}
  local info = type(properties.delivery_info) == 'table' and properties.delivery_info or {}
  local id = text(headers.id) or text(properties.correlation_id)
  if not id or id == '' then return end
  local priority = math.floor(tonumber(text(properties.priority) or '') or 0)
  priority = math.max(0, math.min(9, priority))
  return id, text(headers.task) or '', text(properties.delivery_tag), cjson.encode(text(info.exchange) or ''),
    cjson.encode(text(info.routing_key) or ''), priority
end

local function read(envelope)
  if sub(envelope, 1, 10) == '{"body": "' then
    local body_end = find(envelope, '"', 11, true)
    if body_end then
      local task, id = match(envelope, HEADERS, body_end)
      if id then
        local from = find(envelope, '"delivery_info": {', -400, true)
        if from then
          local exchange, routing_key, priority, delivery_tag = match(envelope, INFO, from)
          if delivery_tag then
            priority = priority == '0' and 0 or math.min(9, tonumber(priority))
            return id, task, delivery_tag, exchange, routing_key, priority
          end
        end
      end
    end
  end
  return read_slowly(envelope)
end

local function held_form(envelope, exchange, routing_key)
  return '[' .. envelope .. ', ' .. exchange .. ', ' .. routing_key .. ']'
end

-- Lists. The right end is the head. In order: lower priorities first, then lower places.
local function list_of(queue, priority) return P .. queue .. STEPS[STEP_OF[priority]] end

local function comes_before(one, other)
  if one.priority ~= other.priority then return one.priority < other.priority end
  return one.place < other.place
end

-- The order of an element; nothing for a message that has no record, which Python published.
local function order_of(element)
  local id = read(element)
  if not id then return end
  local record = look(id)
  if not is_live(record) then return end
  return {element = element, priority = priority_of(record), place = place_of(record)}
end

-- Takes from one end of a list what must not stand between that end and the last of `items`.
local function merge(list, items, pop, push, index, before)
  local all = {}
  for at = 1, #items do all[at] = items[at] end
  local last = items[#items]
  for _ = 1, WALK_MAX do
    local element = call('LINDEX', list, index)
    local order = element and order_of(element)
    if not order or not before(order, last) then break end
    call(pop, list)
    all[#all + 1] = order
  end
  table.sort(all, before)
  local elements = {}
  for at = #all, 1, -1 do elements[#elements + 1] = all[at].element end
  send(push, list, elements)
end

-- Puts what comes back, or has come due, at its place. Where more than WALK_MAX others go before it, it goes ahead of
-- some of them rather than move them all.
local function put_in_line(list, items)
  table.sort(items, comes_before)
  local newest = call('LINDEX', list, 0)
  local order = newest and order_of(newest)
  if order and comes_before(order, items[1]) then
    local elements = {}
    for at = 1, #items do elements[at] = items[at].element end
    return send('LPUSH', list, elements)
  end
  merge(list, items, 'RPOP', 'RPUSH', -1, comes_before)
end

-- Puts what is new at the end, or, on a list that has priorities between Celery's steps, ahead of higher numbers.
local uneven
local function is_uneven(list)
  if not uneven then
    uneven = {}
    for _, name in ipairs(call('SMEMBERS', UNEVEN)) do uneven[name] = true end
  end
  return uneven[list]
end

local function put_at_end(list, items)
  local odd = false
  for at = 1, #items do odd = odd or STEPS[items[at].priority] == nil end
  if odd and not is_uneven(list) then
    call('SADD', UNEVEN, list)
    uneven[list] = true
  end
  if is_uneven(list) then
    local after = function(one, other) return comes_before(other, one) end
    table.sort(items, after)
    return merge(list, items, 'LPOP', 'LPUSH', 0, after)
  end
  local elements = {}
  for at = 1, #items do elements[at] = items[at].element end
  send('LPUSH', list, elements)
end

local returning, arriving = {}, {}
local function gather(lists, list, item)
  local items = lists[list]
  if not items then
    items = {}
    lists[list] = items
  end
  items[#items + 1] = item
end

local function item_of(record, element)
  return {element = element, priority = priority_of(record), place = place_of(record)}
end

-- What leaves the leases, and what joins or leaves the messages kept: an envelope, or false for none.
local released, unacked_gone, kept = {}, {}, {}
local gone, gone_count = {}, 0

local function release(tag, delivery_tag)
  gone[tag] = true
  gone_count = gone_count + 1
  released[gone_count] = tag
  unacked_gone[gone_count] = delivery_tag
end

-- The same for one of which more must be known.
local function release_marked(tag, delivery_tag, id, record)
  release(tag, delivery_tag)
  if record.i then call('HDEL', INTERRUPTS, tag) end
  -- Those that wait for the end of this one wait for it wherever it is.
  if not record.x then call('HDEL', MARKS, id) end
end

-- The envelope of what is held; nothing when somebody else has restored it to its list.
local function held_envelope(id, delivery_tag)
  return call('HEXISTS', UNACKED, delivery_tag) == 1 and call('HGET', MESSAGES, id)
end

-- Attempts.
local function note_attempt(id, outcome, worker, started, ended, why)
  local key = OWN .. 'a:' .. id
  call('RPUSH', key, outcome .. ' ' .. started .. ' ' .. ended .. ' ' .. #worker .. ' ' .. worker .. (why or ''))
  call('LTRIM', key, -ATTEMPTS_MAX, -1)
end

-- Notes that the run which holds a message is over and the task is not.
local function note_run(id, record, outcome, ended)
  if record.f ~= 'r' then return end
  local _, since, worker = holder(record)
  if since then note_attempt(id, outcome, worker, since, ended) end
end

-- Lets a message wait on its queue, or for its time.
local function wait(id, record, envelope, due, new)
  if due and tonumber(due) > now then
    change(id, record, {'f', 'd', 'e', due, 'i', false, 'g', false})
    call('ZADD', OWN .. 'delayed:' .. record.q, due, id)
    kept[id] = envelope
  else
    change(id, record, {'f', false, 'e', false, 'i', false, 'g', false})
    if not new then kept[id] = false end
    gather(new and arriving or returning, list_of(record.q, priority_of(record)), item_of(record, envelope))
  end
end

-- Gathers the messages of a queue whose time has come; says whether there were any.
local function promote(queue)
  local key = OWN .. 'delayed:' .. queue
  local ids = call('ZRANGEBYSCORE', key, '-inf', now_text, 'LIMIT', 0, DUE_MAX)
  if #ids == 0 then return false end
  send('ZREM', key, ids)
  for _, id in ipairs(ids) do
    local record = look(id)
    local envelope = call('HGET', MESSAGES, id)
    if record.f == 'd' and envelope then
      kept[id] = false
      change(id, record, {'f', false, 'e', false})
      gather(returning, list_of(queue, priority_of(record)), item_of(record, envelope))
    end
  end
  return true
end

-- The first message of its id that came while it was held follows it.
local function let_next_follow(id, record)
  if not record.x then return end
  local key = OWN .. 'n:' .. id
  local envelope = call('RPOP', key)
  local left = call('LLEN', key)
  change(id, record, {'x', left > 0 and tostring(left) or false})
  if left == 0 then call('HDEL', MARKS, id) end
  if not envelope then return end
  local _, _, _, _, _, priority = read(envelope)
  call('RPUSH', list_of(record.q, priority or 0), envelope)
end

-- Results.
local finals = {SUCCESS = true, FAILURE = true, REVOKED = true}
local states = {}
local meta_keys = {}
local function meta_key(id)
  local key = R .. 'celery-task-meta-' .. id
  meta_keys[id] = key
  return key
end

-- The state stored, as far as its beginning tells; '' for none.
local function state_of(id)
  local state = states[id]
  if not state then
    local head = call('GETRANGE', meta_key(id), 0, 39)
    state = head == '' and '' or match(head, '^{"status": "(%u+)"') or match(head, '"status":%s*"(%u+)"') or '?'
    states[id] = state
  end
  return state
end

local function is_finished(id) return finals[state_of(id)] or false end

-- Gives a log that stands in its record a list of its own, so that more can follow.
local function unfold(id, record)
  if not record.E then return end
  call('RPUSH', OWN .. 'l:' .. id, record.E)
  change(id, record, {'E', false, 'L', '1'})
end

-- It is to run again: what it came to the last time is no longer its result.
local function reopen(id, record)
  unfold(id, record)
  change(id, record, {'z', false, 'w', false, 'i', false, '=', false, '~', false})
  if is_finished(id) then
    call('DEL', meta_key(id))
    states[id] = ''
  end
end

local function flush_lines()
  for list, items in pairs(returning) do put_in_line(list, items) end
  for list, items in pairs(arriving) do put_at_end(list, items) end
  returning, arriving = {}, {}
end

local function flush_messages()
  local sets, clears = {}, {}
  local all = kept
  kept = {}
  for id, envelope in pairs(all) do
    if envelope then
      sets[#sets + 1] = id
      sets[#sets + 1] = envelope
    else
      clears[#clears + 1] = id
    end
  end
  send('HDEL', MESSAGES, clears)
  send('HSET', MESSAGES, sets)
end

-- Moves messages of a queue whose time has come to their line, so that the rest of the script finds them there.
local function let_come_due(queue)
  if promote(queue) then
    flush_messages()
    flush_lines()
  end
end

-- `unacked_left`: what was released has left `unacked` already.
local function finish(unacked_left)
  flush_messages()
  store_counter()
  send('ZREM', LEASES, released)
  if not unacked_left then send('HDEL', UNACKED, unacked_gone) end
  send('ZREM', UNACKED_INDEX, unacked_gone)
  flush_lines()
end
