-- Counts what stands on the queues.
--
-- Returns for each queue that is known {name, ready, delayed, reserved, when its oldest was published, paused}.

local reserved = {}
for _, tag in ipairs(call('ZRANGE', LEASES, 0, -1)) do
  local _, id = taken_apart(tag)
  local queue = look(id).q
  if queue then reserved[queue] = (reserved[queue] or 0) + 1 end
end
local paused, names, seen = {}, {}, {}
local function note(name)
  if not seen[name] then
    seen[name] = true
    names[#names + 1] = name
  end
end
for _, name in ipairs(call('SMEMBERS', OWN .. 'paused')) do
  paused[name] = true
  note(name)
end
for _, name in ipairs(call('ZRANGE', OWN .. 'queues', 0, -1)) do note(name) end
for name in pairs(reserved) do note(name) end

local found = {}
for _, name in ipairs(names) do
  let_come_due(name)
  local ready, oldest = 0, nil
  for _, step in ipairs({0, 3, 6, 9}) do
    local list = P .. name .. STEPS[step]
    local length = call('LLEN', list)
    if length > 0 then
      ready = ready + length
      local id = read(call('LINDEX', list, -1))
      local published = id and look(id).u
      if published and (not oldest or tonumber(published) < tonumber(oldest)) then oldest = published end
    end
  end
  -- More may have come due than are moved at once.
  local due = call('ZCOUNT', OWN .. 'delayed:' .. name, '-inf', now_text)
  local delayed = call('ZCARD', OWN .. 'delayed:' .. name) - due
  ready = ready + due
  local held = reserved[name] or 0
  if ready + delayed + held > 0 or paused[name] then
    found[#found + 1] = {name, ready, delayed, held, oldest or '', paused[name] and 1 or 0}
  end
end
finish()
return found
