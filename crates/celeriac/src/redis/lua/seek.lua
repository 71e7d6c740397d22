-- Seeks the messages of tasks that nothing is known of: a Python producer sent them, and none of ours has had them in
-- hand. What is found is known from then on, as accepted now.
--
-- ARGV[4] {how many messages to look at, ids}
-- Returns how many were found.

local order = cmsgpack.unpack(ARGV[4])
local left, ids = order[1], order[2]
local PAGE = 200

local sought, missing = {}, 0
for _, id in ipairs(ids) do
  if not sought[id] and not has_message(look(id)) and not is_finished(id) then
    sought[id] = true
    missing = missing + 1
  end
end
local before = missing

-- Whether text may be about one that is sought; an id that JSON writes with escapes may be in any.
local function may_be(text)
  for id in pairs(sought) do
    if find(text, id, 1, true) or find(id, '[^%w%-_.]') then return true end
  end
end

local function note(envelope, queue, elsewhere)
  local id, task, _, _, _, priority = read(envelope)
  if not id or not sought[id] then return end
  sought[id] = nil
  missing = missing - 1
  local record = look(id)
  change(id, record, {'n', introduce(id, record), 'k', task, 'q', queue, 'p', priority > 0 and tostring(priority),
    'u', now_text, '~', elsewhere})
end

-- The newest first: people ask for what they have just sent.
local function on_list(list, queue)
  for from = 0, call('LLEN', list) - 1, PAGE do
    if left <= 0 or missing == 0 then return end
    left = left - PAGE
    for _, element in ipairs(call('LRANGE', list, from, from + PAGE - 1)) do
      if may_be(element) then note(element, queue, false) end
    end
  end
end

-- What a worker of Python's holds, which need not have told of it.
local function in_hand()
  local cursor = '0'
  repeat
    if left <= 0 or missing == 0 then return end
    left = left - PAGE
    local page = call('HSCAN', UNACKED, cursor, 'COUNT', PAGE)
    cursor = page[1]
    for at = 2, #page[2], 2 do
      local well, held = false, nil
      if may_be(page[2][at]) then well, held = pcall(cjson.decode, page[2][at]) end
      if well and type(held) == 'table' and type(held[1]) == 'table' then
        note(cjson.encode(held[1]), text(held[3]) or '', now_text)
      end
    end
  until cursor == '0'
end

if missing > 0 then in_hand() end
for _, queue in ipairs(call('ZRANGE', OWN .. 'queues', 0, -1)) do
  for _, step in ipairs({0, 3, 6, 9}) do on_list(P .. queue .. STEPS[step], queue) end
end
finish()
return before - missing
