-- Add an entry to a stream. A new stream expires after ARGV[1] milliseconds.
local id = redis.call('XADD', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return id
