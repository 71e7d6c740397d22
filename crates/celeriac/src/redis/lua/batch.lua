-- Batches: messages sent at once, of one name and for one queue, whose ids differ in their last four digits, which count
-- from 0000. Their ids are UUIDs of version 8, which nobody else is likely to make.
--
-- Until one of them is first taken in hand it has no record of its own, as that of its batch tells all there is to know:
--   n  the number of its first      c  how many       k  name      q  queue      u  when they were published
--   g  how many have left the order of acceptance, being forgotten
-- and a bit beside it for each of them that has a record of its own, or had one. In the order of acceptance a batch has one
-- entry, under the number of its last: b, what its ids begin with, c, how many.

local VERSION_AT, VERSION, PREFIX_LENGTH = 15, string.byte('8'), 32

-- By what their ids begin with; false where there is none.
local batches = {}
local function batch_named(prefix)
  local batch = batches[prefix]
  if batch == nil then
    local key = OWN .. 'b:' .. prefix
    local fields = call('HMGET', key, 'n', 'c', 'k', 'q', 'u')
    batch = fields[1] and {
      key = key, bits = OWN .. 'r:' .. prefix, prefix = prefix, first = tonumber(fields[1]), count = tonumber(fields[2]),
      k = fields[3], q = fields[4], u = fields[5],
    } or false
    batches[prefix] = batch
  end
  return batch
end

-- The batch that an id belongs to, and its place there, from 0; nothing where it belongs to none.
local function batch_of(id)
  if string.byte(id, VERSION_AT) ~= VERSION or #id ~= PREFIX_LENGTH + 4 then return end
  local batch = batch_named(sub(id, 1, PREFIX_LENGTH))
  if not batch or not find(id, '^[0-9a-f][0-9a-f][0-9a-f][0-9a-f]$', PREFIX_LENGTH + 1) then return end
  local place = tonumber(sub(id, PREFIX_LENGTH + 1), 16)
  if place < batch.count then return batch, place end
end

local function id_in(prefix, place) return prefix .. string.format('%04x', place) end
local function number_in(batch, place) return string.format('%.0f', batch.first + place) end
-- Notes that one has a record of its own now; says whether it had one before.
local function had_record(batch, place) return call('SETBIT', batch.bits, place, '1') == 1 end
