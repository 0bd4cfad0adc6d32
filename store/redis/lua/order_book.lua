-- One order book: for each side a hash of sizes by price and a sorted set of prices, and a record beside them.
--
-- Prices are text, the shortest that brings the number back, so that one price is one field and one member. Each
-- function is one script: nobody sees a book half changed. Levels come as MessagePack, {price, size, price, size ...}
-- in text, and lists of prices whose levels go.

local RECORD, SIZES, PRICES = KEYS[1], {KEYS[2], KEYS[4]}, {KEYS[3], KEYS[5]}
local COUNTS = {'bids', 'asks'}

local function put(side, levels)
  for first = 1, #levels, TOGETHER do
    local last = math.min(first + TOGETHER - 1, #levels)
    local scored = {}
    for at = first, last, 2 do
      scored[#scored + 1] = levels[at]
      scored[#scored + 1] = levels[at]
    end
    redis.call('HSET', SIZES[side], unpack(levels, first, last))
    redis.call('ZADD', PRICES[side], unpack(scored))
  end
end

local function drop(side, prices)
  for first = 1, #prices, TOGETHER do
    local last = math.min(first + TOGETHER - 1, #prices)
    redis.call('HDEL', SIZES[side], unpack(prices, first, last))
    redis.call('ZREM', PRICES[side], unpack(prices, first, last))
  end
end

-- Whether both sides are as they were left: an evicted key, or somebody else's, must not pass for an empty side.
local function whole()
  local counts = redis.call('HMGET', RECORD, 'bids', 'asks')
  for side = 1, 2 do
    local count = tonumber(counts[side] or '')
    if not count then
      return false
    end
    if count > 0 and not (is(SIZES[side], 'hash') and is(PRICES[side], 'zset')) then
      return false
    end
    if count > 0 and (redis.call('ZCARD', PRICES[side]) ~= count or redis.call('HLEN', SIZES[side]) ~= count) then
      return false
    end
  end
  return true
end

local function noted(owner, number, lifetime, last_id, event_time, received_at)
  local counts = {redis.call('ZCARD', PRICES[1]), redis.call('ZCARD', PRICES[2])}
  redis.call(
    'HSET', RECORD, 'owner', owner, 'number', number, 'at', server_ms(), 'state', 'live', 'last_id', last_id,
    'event_time', event_time, 'received_at', received_at, 'bids', counts[1], 'asks', counts[2]
  )
  for at = 1, 5 do
    redis.call('PEXPIRE', KEYS[at], lifetime)
  end
  return {DONE, counts[1], counts[2]}
end

-- Put a whole book down in place of any before.
-- ARGV: owner, number, lease, lifetime, last_id, event_time (empty: not said), received_at, levels of both sides
local function replace()
  local answer = may_begin(record(RECORD), ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]))
  if answer ~= DONE then
    return {answer}
  end
  redis.call('DEL', unpack(KEYS))
  local levels = cmsgpack.unpack(ARGV[8])
  put(1, levels[1])
  put(2, levels[2])
  return noted(ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
end

-- Change levels of the book that call `after` of the same owner left.
-- ARGV: owner, number, lease, lifetime, last_id, event_time, received_at, after,
--       {changed bids, gone bids, changed asks, gone asks}
local function apply()
  local answer = may_go_on(record(RECORD), ARGV[1], tonumber(ARGV[8]), tonumber(ARGV[3]))
  if answer ~= DONE then
    return {answer}
  end
  if not whole() then
    return {REFUSED}
  end
  local changes = cmsgpack.unpack(ARGV[9])
  for side = 1, 2 do
    drop(side, changes[2 * side])
    put(side, changes[2 * side - 1])
  end
  return noted(ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
end

-- Serve the book no longer, and keep for a while why.
-- ARGV: owner, number, lease, lifetime of the reason, the reason
local function remove()
  local answer = may_begin(record(RECORD), ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]))
  if answer ~= DONE then
    return {answer}
  end
  redis.call('DEL', unpack(KEYS))
  redis.call('HSET', RECORD, 'owner', ARGV[1], 'number', ARGV[2], 'at', server_ms(), 'state', 'none', 'why', ARGV[5])
  redis.call('PEXPIRE', RECORD, ARGV[4])
  return {DONE, 0, 0}
end

local function best(side, count)
  local prices
  if side == 1 then
    prices = redis.call('ZREVRANGE', PRICES[side], 0, count - 1)
  else
    prices = redis.call('ZRANGE', PRICES[side], 0, count - 1)
  end
  local sizes = {}
  for first = 1, #prices, TOGETHER do
    local some = redis.call('HMGET', SIZES[side], unpack(prices, first, math.min(first + TOGETHER - 1, #prices)))
    for at = 1, #some do
      -- A price without a size: not the book that was put here.
      if not some[at] then
        return nil
      end
      sizes[#sizes + 1] = some[at]
    end
  end
  -- One text for many numbers: they are quicker to send and to read.
  return {table.concat(prices, ' '), table.concat(sizes, ' ')}
end

-- The best levels of both sides, best first.
-- ARGV: levels of each side. Gives nothing, {why}, or {last_id, event_time, received_at, texts of both sides}
local function read()
  if not is(RECORD, 'hash') then
    return nil
  end
  local found = redis.call('HMGET', RECORD, 'state', 'last_id', 'event_time', 'received_at', 'why')
  if found[1] == 'none' then
    return {found[5] or ''}
  end
  if found[1] ~= 'live' or not (found[2] and found[3] and found[4]) or not whole() then
    return nil
  end
  local bids, asks = best(1, tonumber(ARGV[1])), best(2, tonumber(ARGV[1]))
  if not bids or not asks then
    return nil
  end
  return {found[2], found[3], found[4], bids[1], bids[2], asks[1], asks[2]}
end
