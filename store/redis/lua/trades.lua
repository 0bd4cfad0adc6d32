-- The recent trades of one instrument: a list of packed batches, oldest first, and a record beside it.
--
-- A batch begins with the number of its trades (4 bytes) and when the newest was received (8 bytes, epoch
-- milliseconds of the writer's clock), highest byte first.

local RECORD, BATCHES = KEYS[1], KEYS[2]
-- Batches that one call lets go of at most, so that none takes long.
local MOST_DROPPED = 200
-- Batches looked at together when reading.
local LOOKED_AT = 64

-- Add batches after what call `after` of the same owner left; without `after`, in place of what is there.
-- ARGV: owner, number, lease, lifetime, after (empty: begin anew), most trades kept, oldest instant kept, batches ...
local function add()
  local owner, number, lease, after = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5])
  local held = record(RECORD)
  local answer, trades
  if after then
    answer = may_go_on(held, owner, after, lease)
    if answer == DONE then
      trades = tonumber(redis.call('HGET', RECORD, 'trades') or '')
      local batches = tonumber(redis.call('HGET', RECORD, 'batches') or '')
      -- An evicted list must not pass for a quiet market.
      if not trades or not batches or (batches > 0 and not is(BATCHES, 'list')) then
        return {REFUSED}
      end
      if redis.call('LLEN', BATCHES) ~= batches then
        return {REFUSED}
      end
    end
  else
    answer, trades = may_begin(held, owner, number, lease), 0
    if answer == DONE then
      redis.call('DEL', RECORD, BATCHES)
    end
  end
  if answer ~= DONE then
    return {answer}
  end
  for at = 8, #ARGV do
    redis.call('RPUSH', BATCHES, ARGV[at])
    trades = trades + struct.unpack('>I4', ARGV[at])
  end
  local most, oldest = tonumber(ARGV[6]), tonumber(ARGV[7])
  for _ = 1, MOST_DROPPED do
    local first = redis.call('LINDEX', BATCHES, 0)
    if not first then
      break
    end
    local count, newest = struct.unpack('>I4I8', first)
    if trades - count < most and newest >= oldest then
      break
    end
    redis.call('LPOP', BATCHES)
    trades = trades - count
  end
  redis.call(
    'HSET', RECORD, 'owner', owner, 'number', number, 'at', server_ms(), 'state', 'live', 'trades', trades,
    'batches', redis.call('LLEN', BATCHES)
  )
  redis.call('PEXPIRE', RECORD, ARGV[4])
  redis.call('PEXPIRE', BATCHES, ARGV[4])
  return {DONE, trades}
end

-- The newest batches that together have so many trades, newest first.
-- ARGV: trades wanted
local function newest()
  if not is(BATCHES, 'list') then
    return {}
  end
  local wanted, found = tonumber(ARGV[1]), {}
  local last = -1
  while wanted > 0 do
    local some = redis.call('LRANGE', BATCHES, last - LOOKED_AT + 1, last)
    if #some == 0 then
      break
    end
    for at = #some, 1, -1 do
      if wanted > 0 and #some[at] >= 12 then
        found[#found + 1] = some[at]
        wanted = wanted - struct.unpack('>I4', some[at])
      end
    end
    if #some < LOOKED_AT then
      break
    end
    last = last - LOOKED_AT
  end
  return found
end
