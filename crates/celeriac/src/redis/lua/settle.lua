-- Settles reservations as most are: acknowledged, with a result of SUCCESS and the end of the log. And notes that their tasks
-- are begun.
--
-- ARGV[4]  TTL of results in milliseconds, 0 for none      ARGV[5]  batches kept in the feed
-- ARGV[6…] for each: reservation; number of the task, delivery tag and id, as the reservation names them; meta and data of
--          the end, or two that are empty where it begins
-- Returns for each 1 when it was written, 0 when the reservation is lost, or 2 where nothing was done, because more must
-- be known of it: that is for `commit`.

local ttl, feed_bound = ARGV[4], ARGV[5]
local END_AT = now_text .. ' 3 end'
local tags, ids, metas = {}, {}, {}
for at = 6, #ARGV, 6 do
  local place = #tags + 1
  tags[place], ids[place] = ARGV[at], ARGV[at + 3]
  metas[place] = R .. 'celery-task-meta-' .. ARGV[at + 3]
end
local held, marks = {}, {}
for from = 1, #tags, 1000 do
  local last = math.min(from + 999, #tags)
  local scores, marked = call('ZMSCORE', LEASES, unpack(tags, from, last)), call('HMGET', MARKS, unpack(ids, from, last))
  for at = from, last do held[at], marks[at] = scores[at - from + 1], marked[at - from + 1] end
end

local outcomes, seen, count = {}, {}, 0
local released, delivery_tags, keys, told, unmarked = {}, {}, {}, {}, {}
for place = 1, #tags do
  local at, id, meta_key = 6 * place, ids[place], metas[place]
  local outcome = 1
  if not held[place] then
    outcome = 0
  elseif seen[id] then
    outcome = 2
  elseif ARGV[at + 4] == '' then
    seen[id] = true
    call('HSET', OWN .. 't:' .. id, 'g', '1')
    call('HSETNX', MARKS, id, 'b')
  elseif marks[place] and marks[place] ~= 'b' then
    outcome = 2
  else
    local meta, new = ARGV[at + 4], nil
    if ttl ~= '0' then
      new = call('SET', meta_key, meta, 'PX', ttl, 'NX')
    else
      new = call('SET', meta_key, meta, 'NX')
    end
    if new then
      seen[id] = true
      call('PUBLISH', meta_key, meta)
      local key = OWN .. 't:' .. id
      call('HSET', key, 'f', 's', 'z', now_text, 'E', END_AT .. ARGV[at + 5])
      if marks[place] then
        call('HDEL', key, 'g')
        unmarked[#unmarked + 1] = id
      end
      count = count + 1
      released[count], delivery_tags[count], keys[count] = tags[place], ARGV[at + 2], key
      told[2 * count - 1], told[2 * count] = ARGV[at + 1], '1'
    else
      outcome = 2
    end
  end
  outcomes[place] = outcome
end
if count == 0 then return outcomes end

for from = 1, 2 * count, 1000 do
  call('XADD', FEED, 'MAXLEN', '~', feed_bound, number() .. '-0', unpack(told, from, math.min(from + 999, 2 * count)))
end
store_counter()
send('ZREM', LEASES, released)
send('HDEL', MARKS, unmarked)
if send('HDEL', UNACKED, delivery_tags) ~= count then
  -- One that is not in `unacked` any more was restored by somebody else meanwhile: whoever meets it on a list knows it by
  -- its delivery tag.
  for at = 1, count do
    if not call('ZSCORE', UNACKED_INDEX, delivery_tags[at]) then call('HSET', keys[at], '=', delivery_tags[at]) end
  end
end
send('ZREM', UNACKED_INDEX, delivery_tags)
return outcomes
