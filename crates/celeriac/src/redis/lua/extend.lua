-- Starts leases over, and tells every other restorer that their holders live.
--
-- ARGV[4] {end of the leases in microseconds, now in Celery's seconds, reservations}
-- Returns the reservations that are not held any more.

local order = cmsgpack.unpack(ARGV[4])
local lease_end, seconds, tags = order[1], order[2], order[3]
local lost, leases, index = {}, {}, {}
for from = 1, #tags, 1000 do
  local last = math.min(from + 999, #tags)
  local scores = call('ZMSCORE', LEASES, unpack(tags, from, last))
  for at = from, last do
    local tag = tags[at]
    if scores[at - from + 1] then
      leases[#leases + 1] = lease_end
      leases[#leases + 1] = tag
      local delivery_tag = taken_apart(tag)
      index[#index + 1] = seconds
      index[#index + 1] = delivery_tag
    else
      lost[#lost + 1] = tag
    end
  end
end
-- Only where it is: one that a Python worker has just restored must not come back without its envelope.
for from = 1, #index, 1000 do
  call('ZADD', UNACKED_INDEX, 'XX', unpack(index, from, math.min(from + 999, #index)))
end
send('ZADD', LEASES, leases)
return lost
