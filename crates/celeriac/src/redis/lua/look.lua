-- Tells what is known of tasks.
--
-- ARGV[4] {ids, nil, nil, whether to tell all, of the only one}, or {nil, older than this number, how many}
-- Returns for each {id, its number, beginning of its result's meta, fields and values of its record by turns, its last
-- attempt where it has no run}; for a whole one also envelope, attempts, how many go before it (-1 where it does not
-- wait), and the entry of its newest progress.

local order = cmsgpack.unpack(ARGV[4])
local ids, before, count, whole = order[1], order[2], order[3], order[4]
local PAGE, AHEAD_MAX = 200, 10000

local numbers = {}
if not ids then
  ids = {}
  local older_than = before and tonumber(before) or math.huge
  local function list(id, n)
    ids[#ids + 1] = id
    numbers[#ids] = n
  end
  local function list_entry(entry)
    local last, what = match(entry[1], '^%d+'), entry[2]
    if what[1] ~= 'b' then return list(what[2], last) end
    local first = tonumber(last) - (tonumber(what[4]) - 1)
    for place = math.min(tonumber(what[4]), older_than - first) - 1, 0, -1 do
      if #ids == count then return end
      local id, n = id_in(what[2], place), string.format('%.0f', first + place)
      -- One that was forgotten has left the order, and its entry stays for the others.
      if look(id).n == n then list(id, n) end
    end
  end
  -- A batch has its entry under the number of its last.
  local across = before and call('XRANGE', TASKS, before .. '-0', '+', 'COUNT', 1)[1]
  if across and across[2][1] == 'b' then list_entry(across) end
  for _, entry in ipairs(call('XREVRANGE', TASKS, before and ('(' .. before .. '-0') or '+', '-', 'COUNT', count)) do
    if #ids < count then list_entry(entry) end
  end
end
local answers = {}
if whole then
  local record = look(ids[1])
  if record.q then let_come_due(record.q) end
end

local function ahead_of(id, record)
  if record.f then return -1 end
  local own = STEP_OF[priority_of(record)]
  local ahead = 0
  for _, step in ipairs({0, 3, 6, 9}) do
    local list = P .. record.q .. STEPS[step]
    if step < own then
      ahead = ahead + call('LLEN', list)
    elseif step == own then
      for from = 1, math.min(call('LLEN', list), AHEAD_MAX), PAGE do
        local page = call('LRANGE', list, -(from + PAGE - 1), -from)
        for at = #page, 1, -1 do
          if read(page[at]) == id then return math.min(ahead, AHEAD_MAX) end
          ahead = ahead + 1
        end
      end
    end
  end
  return math.min(ahead, AHEAD_MAX)
end

for at, id in ipairs(ids) do
  local record = look(id)
  local flat = {}
  for field, value in pairs(record) do
    flat[#flat + 1] = field
    flat[#flat + 1] = value
  end
  local meta = has_message(record) and call('GETRANGE', meta_key(id), 0, 255) or ''
  local _, since = holder(record)
  local last = not since and has_message(record) and call('LINDEX', OWN .. 'a:' .. id, -1) or ''
  answers[at] = {id, numbers[at] or record.n or '', meta, flat, last or ''}
  if whole and has_message(record) then
    local envelope = call('HGET', MESSAGES, id)
    if not envelope and not record.f then
      local list = list_of(record.q, priority_of(record))
      for from = 1, math.min(call('LLEN', list), AHEAD_MAX), PAGE do
        for _, element in ipairs(call('LRANGE', list, -(from + PAGE - 1), -from)) do
          if read(element) == id then envelope = element end
        end
        if envelope then break end
      end
    end
    local progress = record.r and call('LINDEX', OWN .. 'l:' .. id, tonumber(record.r) - tonumber(record.l or '0') - 1)
    local answer = answers[at]
    answer[6] = envelope or ''
    answer[7] = call('LRANGE', OWN .. 'a:' .. id, 0, -1)
    answer[8] = ahead_of(id, record)
    answer[9] = progress or ''
  end
end
finish()
return answers
