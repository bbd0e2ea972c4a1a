-- Take a lease of a client, or refuse it.
--
-- KEYS[1]  the leases of the client: members by the time at which they expire
-- KEYS[2]  the leases that were taken from their owners, until the owners have been notified
-- KEYS[3]  the leases of the client: members by the time at which their slots were taken
-- ARGV[1]  how long a lease is valid, in milliseconds
-- ARGV[2]  the most leases of the client
-- ARGV[3]  the leases that may be taken from their owners: "nobody" (none), "e" (of streams that
--          can send an event about it) or "any"
-- ARGV[4]  the member; its first letter is its kind
-- ARGV[5]  the age of its slot, in milliseconds
--
-- All times are those of Redis: the clocks of the processes may differ. Returns the number of
-- leases with this one, or -1, and then the leases that were taken.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = tonumber(ARGV[1])
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE')) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('ZREM', KEYS[3], member)
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)

local count = redis.call('ZCARD', KEYS[1])
local lost = {}
if redis.call('ZSCORE', KEYS[1], ARGV[4]) then
  count = count - 1  -- a repeated request: the answer was lost
elseif count >= tonumber(ARGV[2]) then
  local surplus = count - tonumber(ARGV[2]) + 1
  if ARGV[3] ~= 'nobody' then
    for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do  -- the oldest first
      local is_candidate = ARGV[3] == 'any' or string.sub(member, 1, 1) == ARGV[3]
      if #lost < surplus and is_candidate and redis.call('ZSCORE', KEYS[1], member) then
        lost[#lost + 1] = member
      end
    end
  end
  if #lost < surplus then
    return {-1}
  end
  for _, member in ipairs(lost) do
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZREM', KEYS[3], member)
    redis.call('ZADD', KEYS[2], now + lease, member)
  end
  redis.call('PEXPIRE', KEYS[2], lease)
  count = count - surplus
end
redis.call('ZADD', KEYS[1], now + lease, ARGV[4])
redis.call('ZADD', KEYS[3], 'NX', now - tonumber(ARGV[5]), ARGV[4])
redis.call('PEXPIRE', KEYS[1], lease)
redis.call('PEXPIRE', KEYS[3], lease)
return {count + 1, unpack(lost)}
