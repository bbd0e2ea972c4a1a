-- Renew the leases of a process for one client, and give others back.
--
-- KEYS[1]  the leases of the client: members by the time at which they expire
-- KEYS[2]  the leases that were taken from their owners, until the owners have been notified
-- KEYS[3]  the leases of the client: members by the time at which their slots were taken
-- ARGV[1]  how long a lease is valid, in milliseconds
-- ARGV[2]  how many of the leases after it are renewed; the rest are given back
-- ARGV     from 3 on, for each lease its member, and the age of its slot in milliseconds
--
-- A lease that has expired, or that Redis has lost, is taken again without a check, because its
-- stream is running. Returns the number of leases, and those of the renewed ones that were taken.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = tonumber(ARGV[1])
local kept = tonumber(ARGV[2])
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE')) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('ZREM', KEYS[3], member)
end

local lost = {}
for index = 3, #ARGV, 2 do
  local member = ARGV[index]
  local is_kept = index < 3 + 2 * kept
  if redis.call('ZREM', KEYS[2], member) == 1 then
    if is_kept then
      lost[#lost + 1] = member
    end
  elseif is_kept then
    redis.call('ZADD', KEYS[1], now + lease, member)
    redis.call('ZADD', KEYS[3], 'NX', now - tonumber(ARGV[index + 1]), member)
  else
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZREM', KEYS[3], member)
  end
end
if kept > 0 then
  redis.call('PEXPIRE', KEYS[1], lease)
  redis.call('PEXPIRE', KEYS[3], lease)
end
return {redis.call('ZCARD', KEYS[1]), unpack(lost)}
