-- Reads the records of all logs in the order of their writing.
--
-- ARGV[4] {after this number, how many}
-- Returns {number, id, name, position, entry of the log} for each that is still kept.

local order = cmsgpack.unpack(ARGV[4])
local after, limit = order[1], order[2]
-- The id of the task that has a number; of another one where it has left the order, which that one's record tells.
local function id_of(n)
  local entry = call('XRANGE', TASKS, n .. '-0', '+', 'COUNT', 1)[1]
  if not entry then return end
  local last, what = match(entry[1], '^%d+'), entry[2]
  if what[1] ~= 'b' then return what[2] end
  return id_in(what[2], tonumber(what[4]) - 1 - (tonumber(last) - tonumber(n)))
end

local found = {}
local from = string.format('%.0f', math.floor(after / 1000))
while #found < limit do
  local entries = call('XRANGE', FEED, from .. '-0', '+', 'COUNT', 100)
  for _, entry in ipairs(entries) do
    local batch = tonumber(match(entry[1], '^%d+'))
    for at = 1, #entry[2], 2 do
      local number = batch * 1000 + (at - 1) / 2
      if number > after and #found < limit then
        local n, position = entry[2][at], entry[2][at + 1]
        local id = id_of(n)
        local record = id and look(id)
        if record and record.n == n then
          local line = position == '1' and record.E
            or call('LINDEX', OWN .. 'l:' .. id, tonumber(position) - tonumber(record.l or '0') - 1)
          if line then found[#found + 1] = {number, id, record.k or '', tonumber(position), line} end
        end
      end
    end
    from = string.format('%.0f', batch + 1)
  end
  if #entries < 100 then break end
end
return found
