-- Take a place in the share of a client, or say that there is none.
--
-- KEYS[1]  the leases of the client: members by the time at which they run out
-- KEYS[2]  those that were taken away, until their owners have heard
-- ARGV[1]  how long a lease is good for, in milliseconds
-- ARGV[2]  how many leases there may be
-- ARGV[3]  whose may be taken away: "nobody", "e" (of streams that can tell it) or "any"
-- ARGV[4]  the member: a letter for its kind, then what sorts by age
--
-- Returns how many there are with it, or -1, and then who has lost a lease.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = tonumber(ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)

local count = redis.call('ZCARD', KEYS[1])
local lost = {}
if redis.call('ZSCORE', KEYS[1], ARGV[4]) then
  count = count - 1  -- it has asked before, and has not heard the answer
elseif count >= tonumber(ARGV[2]) then
  local able = {}
  if ARGV[3] ~= 'nobody' then
    for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
      if ARGV[3] == 'any' or string.sub(member, 1, 1) == ARGV[3] then
        able[#able + 1] = member
      end
    end
  end
  local many = count - tonumber(ARGV[2]) + 1
  if #able < many then
    return {-1}
  end
  table.sort(able, function(one, other) return string.sub(one, 2) < string.sub(other, 2) end)
  for index = 1, many do
    lost[index] = able[index]
    redis.call('ZREM', KEYS[1], able[index])
    redis.call('ZADD', KEYS[2], now + lease, able[index])
  end
  redis.call('PEXPIRE', KEYS[2], lease)
  count = count - many
end
redis.call('ZADD', KEYS[1], now + lease, ARGV[4])
redis.call('PEXPIRE', KEYS[1], lease)
return {count + 1, unpack(lost)}
