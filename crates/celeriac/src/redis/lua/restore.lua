-- Returns to their queues the messages whose lease has passed, and lets come due what has.
--
-- ARGV[4] {how many at most}
-- Returns how many.

local limit = cmsgpack.unpack(ARGV[4])[1]
local past = call('ZRANGEBYSCORE', LEASES, '-inf', now_text, 'WITHSCORES', 'LIMIT', 0, limit)
for at = 1, #past, 2 do
  local tag, ends = past[at], past[at + 1]
  local delivery_tag, id = taken_apart(tag)
  local record = look(id)
  if record.f == 'r' then
    note_run(id, record, 'lost', string.format('%.0f', tonumber(ends)))
    local envelope = held_envelope(id, delivery_tag)
    change(id, record, {'b', record.b or record.g, 'w', false, 'c', tostring(deliveries_of(record))})
    release_marked(tag, delivery_tag, id, record)
    if envelope then
      wait(id, record, envelope)
    else
      -- A Python worker has restored it already.
      change(id, record, {'f', false, 'i', false, 'g', false})
    end
  else
    release(tag, delivery_tag)
  end
end
-- What has come due on any queue, be it one that no worker of ours consumes.
for _, queue in ipairs(call('ZRANGE', OWN .. 'queues', 0, -1)) do let_come_due(queue) end
finish()
return #past / 2
