-- What every script begins with: where things lie, and numbers.
--
-- KEYS[1]  any key of ours: it tells a cluster which node to ask; all other keys are named here
-- ARGV[1]  global_keyprefix of the broker
-- ARGV[2]  global_keyprefix of the result backend
-- ARGV[3]  now, in microseconds
-- ARGV[4…] what the body wants
--
-- Kept short: a script that moves one message spends most of its time on what stands before its first command, since each
-- function and each text here is made anew for every call.

local call = redis.call
local P, R, now_text = ARGV[1], ARGV[2], ARGV[3]
local OWN = P .. 'celeriac:'
local COUNTER, TASKS, MESSAGES, LEASES = OWN .. 'counter', OWN .. 'tasks', OWN .. 'messages', OWN .. 'leases'
local UNEVEN, FEED, MARKS = OWN .. 'uneven', OWN .. 'feed', OWN .. 'marks'
local UNACKED, UNACKED_INDEX = P .. 'unacked', P .. 'unacked_index'
local find, sub, match = string.find, string.sub, string.match

-- Sends a command about `key` with any number of arguments, in slices that fit on Lua's stack; returns the sum of its
-- answers where those are numbers of what it changed.
local function send(command, key, args)
  local count, sum = #args, 0
  for from = 1, count, 1000 do
    local answer = call(command, key, unpack(args, from, math.min(from + 999, count)))
    if type(answer) == 'number' then sum = sum + answer end
  end
  return sum
end

-- Numbers: of tasks, places, tokens, dead letters, chords. Read once, and stored by `store_counter`.
local counter, counter_read
local function number()
  if not counter then
    counter = tonumber(call('GET', COUNTER) or '0')
    counter_read = counter
  end
  counter = counter + 1
  return string.format('%.0f', counter)
end

local function store_counter()
  if counter and counter ~= counter_read then call('SET', COUNTER, string.format('%.0f', counter)) end
end

-- Gives a task its number in the order of acceptance, which is to be written to its record by the caller.
local function enter(id)
  local n = number()
  call('XADD', TASKS, n .. '-0', 'i', id)
  return n
end

-- Takes up to `wanted` from lines with a length: of each an equal share, and what one has less of from the others.
-- `take(line, some)` says how many came of it, or nothing where it is to end.
local function take_shares(lines, wanted, take)
  local came = 0
  while #lines > 0 and came < wanted do
    local left, share = {}, math.ceil((wanted - came) / #lines)
    for _, line in ipairs(lines) do
      local some = math.min(share, wanted - came, line.length)
      if some > 0 then
        local taken = take(line, some)
        if not taken then return end
        came = came + taken
        line.length = line.length - some
      end
      if line.length > 0 then left[#left + 1] = line end
    end
    lines = left
  end
end
