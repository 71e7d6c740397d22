-- Carries out transactions, each wholly or not at all, one after the other.
--
-- ARGV[4]  {TTL of results in milliseconds, 0 for none; records kept in a log; batches kept in the feed}
-- ARGV[5]  how many transactions
-- ARGV[6…] transactions, {fence, fire, results, publish, chords, parts, steps, log}, each part nil where there is none:
--   fence    {reservation, k keep | b begin | a ack | r requeue | x bury, due, counted, reason}
--   fire     group
--   results  {id, state, which argument is the meta, when it was done, name, the error of a RETRY}
--   publish  {id, name, queue, priority, due, unique, tags, which argument is the envelope, head}
--   chords   {group, size, body}
--   parts    {group, id, index, part as Celery writes it}
--   steps    {id, name, value}
--   log      {id, event, which argument is the data}
-- where an id that is false stands for that of the reservation
-- ARGV[…]  texts
-- Returns for each 1 or {1, chords completed, ids not sent} when it was written, 0 when the reservation is lost, 2 when
-- the chord cannot be fired.

local settings = cmsgpack.unpack(ARGV[4])
-- As a text: a number is written anew for every command.
local ttl_text = string.format('%.0f', settings[1])
local ttl, log_bound, feed_bound = settings[1], settings[2], settings[3]
local DAY = 86400000
local CLAIMED_DONE = 300

local transactions, transaction_count = {}, tonumber(ARGV[5])
-- By place among those with a reservation: that, whether it is held, and what it names.
local tags, held, delivery_tags, ids, numbers = {}, {}, {}, {}, {}
local tag_count = 0
for at = 1, transaction_count do
  local transaction = cmsgpack.unpack(ARGV[5 + at])
  local tag = transaction[1] and transaction[1][1]
  transactions[at] = transaction
  if tag then
    tag_count = tag_count + 1
    tags[tag_count] = tag
    delivery_tags[tag_count], ids[tag_count], numbers[tag_count] = taken_apart(tag)
    ids[tag_count] = ids[tag_count] or ''
  end
end
-- By id.
local marked = {}
for from = 1, tag_count, 1000 do
  local last = math.min(from + 999, tag_count)
  local scores = call('ZMSCORE', LEASES, unpack(tags, from, last))
  for at = from, last do held[at] = scores[at - from + 1] end
  local marks = call('HMGET', MARKS, unpack(ids, from, last))
  for at = from, last do
    if marks[at - from + 1] then marked[ids[at]] = '1' end
  end
end

-- Ids settled, and the delivery tags they were held under.
local settled, settled_count = {}, 0

local function note_settled(id, delivery_tag)
  settled[settled_count + 1], settled[settled_count + 2] = id, delivery_tag
  settled_count = settled_count + 2
end

local function settle_looking(fence, tag, delivery_tag, id)
  local what, due = fence[2], fence[3]
  local record = look(id)
  local _, since = holder(record)
  if what == 'a' then
    release_marked(tag, delivery_tag, id, record)
    change(id, record, {'f', 's', 'z', record.z or now_text, 'w', since and record.w, 'i', false, 'g', false})
  elseif what == 'b' then
    change(id, record, {'g', '1'})
    call('HSETNX', MARKS, id, 'b')
    marked[id] = '1'
  elseif what == 'r' then
    -- What is put off without being counted was not run.
    if fence[4] or not due then note_run(id, record, 'handed_back', now_text) end
    local count = deliveries_of(record) - (fence[4] and 0 or 1)
    local envelope = held_envelope(id, delivery_tag)
    release_marked(tag, delivery_tag, id, record)
    change(id, record, {'c', count > 0 and tostring(count), 'w', false})
    if envelope then
      wait(id, record, envelope, due)
    else
      change(id, record, {'f', false, 'i', false, 'g', false})
    end
  elseif what == 'x' then
    local n = number()
    call('ZADD', DEAD, n, id)
    release_marked(tag, delivery_tag, id, record)
    change(id, record, {'f', 'x', 'd', n, 'm', fence[5], 'y', now_text, 'w', since and record.w, 'i', false, 'g', false})
  end
end

local function settle(fence, delivery_tag, id)
  local tag, what = fence[1], fence[2]
  if what == 'a' then
    note_settled(id, delivery_tag)
    -- What is written of the others is written with their log.
    if not marked[id] then return release(tag, delivery_tag) end
  end
  if what ~= 'k' then settle_looking(fence, tag, delivery_tag, id) end
end

-- Stores a result, unless the one that is there stays; returns the state that was there. `settled_here` is a task that
-- this transaction has settled, of which no more needs to be known.
local function store(id, result, settled_here)
  local state, meta = result[2], ARGV[result[3]]
  local key = meta_keys[id] or meta_key(id)
  local old = states[id]
  if not old then
    local new
    if ttl > 0 then
      new = call('SET', key, meta, 'PX', ttl_text, 'NX')
    else
      new = call('SET', key, meta, 'NX')
    end
    old = new and '' or state_of(id)
    if new then states[id] = state end
  end
  if states[id] ~= state or old ~= '' then
    -- As celery/backends/base.py has it for SUCCESS; here every final state stays.
    if finals[old] and old ~= state then return old end
    if ttl > 0 then call('SET', key, meta, 'PX', ttl_text) else call('SET', key, meta) end
    states[id] = state
  end
  call('PUBLISH', key, meta)
  if id == settled_here then return old end
  local record = look(id)
  if not is_known(record) then change(id, record, {'n', introduce(id, record)}) end
  if finals[state] and not record.z then
    change(id, record, {'z', result[4]})
    if record.f == 'r' then mark(id) end
  end
  if result[5] and not record.k then change(id, record, {'k', result[5]}) end
  return old
end

-- Whether a message that is not due goes to its line all the same. Where Python's workers are and none of ours consumes
-- the queue, nobody would put it there when its time has come; theirs take it at once and wait.
local CONSUMED = 120
local waits = {}
local function python_waits(queue)
  if waits[queue] == nil then
    local consumed = call('ZSCORE', OWN .. 'consumers', queue)
    waits[queue] = not (consumed and tonumber(consumed) > now / 1e6 - CONSUMED)
      and call('EXISTS', P .. '_kombu.binding.celery.pidbox') == 1
  end
  return waits[queue]
end

local function publish(message, fenced, why)
  local id, unique, due = message[1], message[6], message[5]
  local record = look(id)
  local retried = id == fenced
  local live = is_live(record)
  -- One that waits and has finished was taken and run by a Python worker.
  if live and not record.f and is_finished(id) then live = false end
  if live then return false end
  if unique and not retried and (is_known(record) or state_of(id) ~= '') then return false end
  if retried then
    local _, since, worker = holder(record)
    if since then note_attempt(id, 'retried', worker, since, now_text, why) end
  end
  local accepted = record.a or record.u
  local place, n
  if has_message(record) then
    place = number()
    kept[id] = false
  else
    n = introduce(id, record)
  end
  reopen(id, record)
  change(id, record, {'n', n or record.n, 'o', place, 'k', message[2], 'q', message[3],
    'p', message[4] > 0 and tostring(message[4]), 'u', now_text, 'a', accepted, 'j', message[7], 'h', message[9],
    'c', false, 'b', false, 'v', retried and record.v, 'd', false, 'm', false, 'y', false})
  if due and python_waits(message[3]) then
    wait(id, record, ARGV[message[8]], nil, true)
    change(id, record, {'e', due})
  else
    wait(id, record, ARGV[message[8]], due, true)
  end
  return true
end

local function chord_key(group) return R .. 'celery-taskset-meta-' .. group end

local function expire(key)
  if ttl > 0 then call('PEXPIRE', key, ttl) end
end

local function open(chord)
  local group = chord[1]
  local key, own = chord_key(group), OWN .. 'c:' .. group
  if call('EXISTS', key .. '.s', own) > 0 then return end
  call('DEL', key .. '.c', key .. '.j', key .. '.t', key .. '.d')
  call('SET', key .. '.s', chord[2])
  call('HSET', own, 'body', chord[3])
  expire(key .. '.s')
  expire(own)
  call('ZADD', GROUPS, now_text, 'c' .. group)
end

-- As celery/backends/redis.py, on_chord_part_return of 5.7: a part is counted once, whoever completes the chord claims it.
local function count(part)
  local group, id, index = part[1], part[2], part[3] or '+inf'
  local key = chord_key(group)
  -- Claimed or done: complete.
  if call('EXISTS', key .. '.c') == 1 then return false end
  local list = false
  if call('SADD', key .. '.d', id .. ':' .. index) == 1 then
    local added = redis.pcall('ZADD', key .. '.j', index, part[4])
    if type(added) == 'table' and added.err then
      -- An application with result_chord_ordered = False.
      call('RPUSH', key .. '.j', part[4])
      list = true
    end
  end
  local ready = redis.pcall('ZCARD', key .. '.j')
  if type(ready) == 'table' then ready = call('LLEN', key .. '.j') end
  for _, suffix in ipairs({'.j', '.t', '.s', '.d'}) do expire(key .. suffix) end
  local size = call('GET', key .. '.s')
  if not size or ready ~= tonumber(size) + tonumber(call('GET', key .. '.t') or '0') then return false end
  if ttl > 0 then
    call('SET', key .. '.c', 'celeriac', 'PX', ttl)
  else
    call('SET', key .. '.c', 'celeriac')
  end
  call('ZADD', READY, number(), group)
  call('HSET', OWN .. 'c:' .. group, 'last', id)
  expire(OWN .. 'c:' .. group)
  call('ZADD', GROUPS, 'NX', now_text, 'c' .. group)
  return true
end

local function fire(group)
  local key = chord_key(group)
  call('DEL', key .. '.j', key .. '.t', key .. '.s', key .. '.d', OWN .. 'c:' .. group)
  call('SET', key .. '.c', 'done', 'EX', CLAIMED_DONE)
  call('ZREM', READY, group)
  call('ZREM', GROUPS, 'c' .. group)
end

local logs, log_order = {}, {}
-- What the feed is to tell, by twos: the entries of a task and which of them, or its number and nothing for the first.
local told, told_count = {}, 0
local small = {'1', '2', '3', '4', '5', '6', '7', '8', '9'}

local function tell(entries, which)
  told[told_count + 1], told[told_count + 2] = entries, which
  told_count = told_count + 2
end

-- `n` is the task's number, where nothing else need be known of it.
local function append(id, line, n)
  local event = line[2]
  local entries = logs[id]
  if not entries then
    entries = {n = n}
    logs[id] = entries
    log_order[#log_order + 1] = id
  end
  local length = #event
  entries[#entries + 1] = now_text .. ' ' .. (small[length] or length) .. ' ' .. event .. ARGV[line[3]]
  if event == 'progress' then entries.progress = #entries end
  tell(entries, #entries)
end

-- Writes the end of a task of which no more needs to be known. Where its log is the end and nothing else, that stands in
-- the record: `data` is which argument.
local END_AT = now_text .. ' 3 end'
local function end_simply(id, n, data)
  records[id] = nil
  local key = task_keys[id] or (OWN .. 't:' .. id)
  if not data then return call('HSET', key, 'f', 's', 'z', now_text) end
  call('HSET', key, 'f', 's', 'z', now_text, 'E', END_AT .. ARGV[data])
  tell(n, false)
end

local function flush_logs()
  for _, id in ipairs(log_order) do
    local entries, key = logs[id], OWN .. 'l:' .. id
    local count = #entries
    local length
    if not entries.n then unfold(id, look(id)) end
    if count <= 1000 then
      length = call('RPUSH', key, unpack(entries))
    else
      send('RPUSH', key, entries)
      length = call('LLEN', key)
    end
    local trimmed = 0
    if not entries.n or entries.progress or length > log_bound then
      local record = look(id)
      entries.n = record.n
      if not record.L then
        change(id, record, {'L', '1'})
        if record.f == 'r' then mark(id) end
      end
      trimmed = tonumber(record.l or '0')
      if entries.progress then
        change(id, record, {'r', tostring(trimmed + length - count + entries.progress)})
      end
      if length > log_bound then
        call('LTRIM', key, -log_bound, -1)
        change(id, record, {'l', tostring(trimmed + length - log_bound)})
        if record.f == 'r' then mark(id) end
      end
    end
    entries.before = trimmed + length - count
  end
  local batch, length = {}, 0
  for at = 1, told_count, 2 do
    local entries, which = told[at], told[at + 1]
    if which then
      local position = entries.before + which
      batch[length + 1], batch[length + 2] = entries.n, small[position] or position
    else
      batch[length + 1], batch[length + 2] = entries, '1'
    end
    length = length + 2
    if length == 1000 or at + 1 == told_count then
      call('XADD', FEED, 'MAXLEN', '~', feed_bound, number() .. '-0', unpack(batch))
      batch, length = {}, 0
    end
  end
end

-- An envelope that is not in `unacked` any more was restored by somebody else meanwhile: whoever meets it on a list knows
-- it by its delivery tag.
local function leave_unacked()
  if send('HDEL', UNACKED, unacked_gone) == gone_count then return end
  for from = 1, settled_count, 2000 do
    local of, under = {}, {}
    for at = from, math.min(from + 1999, settled_count), 2 do
      of[#of + 1] = settled[at]
      under[#under + 1] = settled[at + 1]
    end
    local scores = call('ZMSCORE', UNACKED_INDEX, unpack(under))
    for at, id in ipairs(of) do
      if not scores[at] then change(id, look(id), {'=', under[at]}) end
    end
  end
end

-- `place` is that of its reservation.
local function commit(transaction, place)
  local fence, group, results, log = transaction[1], transaction[2], transaction[3], transaction[8]
  local tag = fence and fence[1]
  if fence and (not held[place] or gone[tag]) then return 0 end
  if group and not call('ZSCORE', READY, group) then return 2 end
  local fenced = fence and ids[place]
  -- Which tasks were finished before: of those with a result, storing that tells.
  local ended = {}
  if log then
    local stored = {}
    for at = 1, results and #results or 0 do stored[results[at][1] or fenced] = true end
    for at = 1, #log do
      local id = log[at][1] or fenced
      if not stored[id] then ended[id] = is_finished(id) end
    end
  end
  if group then fire(group) end
  local settled_here
  if fence then
    if fence[2] == 'a' and not marked[fenced] then settled_here = fenced end
    settle(fence, delivery_tags[place], fenced)
    -- What is published may be about this very task, and looks at it.
    if settled_here and transaction[4] then
      end_simply(fenced)
      settled_here = nil
    end
  end
  local why
  if results then
    for at = 1, #results do
      local result = results[at]
      local id = result[1] or fenced
      if id == fenced then why = result[6] end
      local old = store(id, result, settled_here)
      if ended[id] == nil then ended[id] = finals[old] or false end
    end
  end
  local ready, duplicates = {}, {}
  if transaction[4] then
    for _, message in ipairs(transaction[4]) do
      if not publish(message, fenced, why) then duplicates[#duplicates + 1] = message[1] end
    end
  end
  if transaction[5] then
    for _, chord in ipairs(transaction[5]) do open(chord) end
  end
  if transaction[6] then
    for _, part in ipairs(transaction[6]) do
      if count(part) then ready[#ready + 1] = part[1] end
    end
  end
  if transaction[7] then
    for _, step in ipairs(transaction[7]) do
      local key = OWN .. 's:' .. step[1]
      call('HSETNX', key, step[2], step[3])
      if not is_known(look(step[1])) then call('PEXPIRE', key, ttl > 0 and ttl or DAY) end
    end
  end
  if settled_here then
    local alone = log and not log[2] and not log[1][1] and log[1][2] == 'end' and not logs[fenced]
    if alone and ended[fenced] and is_finished(fenced) then alone, log = false, nil end
    end_simply(fenced, numbers[place], alone and log[1][3])
    if alone then log = nil end
  end
  if log then
    for at = 1, #log do
      local id = log[at][1] or fenced
      -- Readers were told that nothing follows the end, unless this very transaction sent the task again.
      if not (ended[id] and is_finished(id)) then
        if id == settled_here then
          if not logs[id] then call('HSET', task_key(id), 'L', '1') end
          append(id, log[at], numbers[place])
        elseif is_known(look(id)) then
          append(id, log[at])
        end
      end
    end
  end
  if fenced and marked[fenced] then
    local record = look(fenced)
    if record.x and record.f == 's' then let_next_follow(fenced, record) end
  end
  return ready[1] == nil and duplicates[1] == nil and 1 or {1, ready, duplicates}
end

local outcomes = {}
local place = 0
for at = 1, transaction_count do
  local transaction = transactions[at]
  if transaction[1] then place = place + 1 end
  outcomes[at] = commit(transaction, place)
end
flush_logs()
leave_unacked()
finish(true)
return outcomes
