-- Add to a stream that may be new, which then lives for ARGV[1] milliseconds.
local id = redis.call('XADD', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return id
