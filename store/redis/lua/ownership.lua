-- Who writes a symbol's live data, and in which order. Read before the other files of this folder.
--
-- A record is a hash with the fields owner (a run of a writer), number (counts up with each call of that writer), at
-- (milliseconds of the server's clock), state (live or none), and what the others add. One writer at a time: while
-- the owner goes on writing, others are refused; when it has been silent for the lease, the next one takes over.
-- Numbers keep a call that was given up, but reaches the server late, from undoing a later one.

local DONE, REFUSED, KEPT_BY_ANOTHER = 1, 0, -1
-- Lua's unpack takes no more than about 8,000 at once; even, for pairs.
local TOGETHER = 4000

local function server_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What else lies under our names is not ours to read; it gives way when we write.
local function is(key, kind)
  return redis.call('TYPE', key).ok == kind
end

local function record(key)
  if not is(key, 'hash') then
    return {}
  end
  local found = redis.call('HMGET', key, 'owner', 'number', 'at', 'state')
  return {owner = found[1], number = tonumber(found[2] or ''), at = tonumber(found[3] or ''), state = found[4]}
end

-- Whether this writer may put something new in place of what is there.
local function may_begin(held, owner, number, lease)
  if not held.owner or not held.number or not held.at then
    return DONE
  end
  if held.owner == owner then
    return held.number < number and DONE or REFUSED
  end
  if held.state == 'live' and server_ms() - held.at < lease then
    return KEPT_BY_ANOTHER
  end
  return DONE
end

-- Whether this writer may add to what is there: it must be what its call `after` left.
local function may_go_on(held, owner, after, lease)
  if held.state == 'live' and held.owner == owner and held.number == after then
    return DONE
  end
  if held.state == 'live' and held.owner ~= owner and may_begin(held, owner, after, lease) == KEPT_BY_ANOTHER then
    return KEPT_BY_ANOTHER
  end
  return REFUSED
end
