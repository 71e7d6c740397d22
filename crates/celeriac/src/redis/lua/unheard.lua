-- Hands back what was reserved by calls whose answers were lost, uncounted: nobody has begun to run it.
--
-- ARGV[4] {worker, when the call was made in microseconds, the end of its leases in microseconds, …} as texts, three a call
-- Returns how many.

local calls = cmsgpack.unpack(ARGV[4])
local count = 0
for at = 1, #calls, 3 do
  local worker, made, ends = calls[at], calls[at + 1], calls[at + 2]
  -- Nobody renews them, so their leases still end when they were to.
  for _, tag in ipairs(call('ZRANGEBYSCORE', LEASES, ends, ends)) do
    local delivery_tag, id = taken_apart(tag)
    local record = look(id)
    local _, since, by = holder(record)
    if record.f == 'r' and since == made and by == worker then
      local deliveries = deliveries_of(record) - 1
      local envelope = held_envelope(id, delivery_tag)
      release_marked(tag, delivery_tag, id, record)
      change(id, record, {'c', deliveries > 0 and tostring(deliveries), 'w', false})
      if envelope then
        wait(id, record, envelope)
      else
        -- A Python worker has restored it already.
        change(id, record, {'f', false, 'i', false, 'g', false})
      end
      count = count + 1
    end
  end
end
finish()
return count
