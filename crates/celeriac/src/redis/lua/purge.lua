-- Drops messages that wait on a queue, due or not, up to a bound.
--
-- ARGV[4] {queue, how many at most}
-- Returns the ids of those dropped.

local order = cmsgpack.unpack(ARGV[4])
local queue, limit = order[1], order[2]
local dropped = {}

local function drop(id, record, envelope)
  change(id, record, {'f', 's', 'e', false, 'z', record.z or now_text, 'w', false, 'c', record.c or '0'})
  kept[id] = envelope
  dropped[#dropped + 1] = id
end

for _, step in ipairs({0, 3, 6, 9}) do
  if #dropped < limit then
    for _, element in ipairs(call('RPOP', P .. queue .. STEPS[step], limit - #dropped) or {}) do
      local id, task, _, _, _, priority = read(element)
      if id then
        local record = look(id)
        if not has_message(record) then
          change(id, record, {'n', introduce(id, record), 'k', task, 'q', queue, 'p', priority > 0 and tostring(priority), 'u', now_text})
        end
        if record.f ~= 'r' and record.f ~= 'd' then drop(id, record, element) end
      end
    end
  end
end
if #dropped < limit then
  local key = OWN .. 'delayed:' .. queue
  local ids = call('ZRANGE', key, 0, limit - #dropped - 1)
  send('ZREM', key, ids)
  for _, id in ipairs(ids) do
    local record = look(id)
    change(id, record, {'f', 's', 'e', false, 'z', record.z or now_text, 'w', false, 'c', record.c or '0'})
    dropped[#dropped + 1] = id
  end
end
for _, id in ipairs(dropped) do
  local record = look(id)
  if record.x then let_next_follow(id, record) end
end
finish()
return dropped
