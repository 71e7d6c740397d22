-- Sends dead letters back to their queues, or forgets them.
--
-- ARGV[4] {revive or drop, ids}
-- Returns the ids that were dead.

local order = cmsgpack.unpack(ARGV[4])
local what, ids = order[1], order[2]
local were = {}
for _, id in ipairs(ids) do
  local record = look(id)
  if record.f == 'x' then
    were[#were + 1] = id
    call('ZREM', DEAD, id)
    change(id, record, {'d', false, 'm', false, 'y', false})
    local envelope = call('HGET', MESSAGES, id)
    if what == 'revive' and envelope then
      -- A person wants it to run: nothing of its former life may stop that.
      change(id, record, {'o', number(), 'c', false, 'b', false, 'v', false})
      reopen(id, record)
      kept[id] = false
      wait(id, record, envelope, nil, true)
    else
      change(id, record, {'f', 's', 'z', record.z or now_text})
      if record.x then let_next_follow(id, record) end
    end
  end
end
finish()
return were
