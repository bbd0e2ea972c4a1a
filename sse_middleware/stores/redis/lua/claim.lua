-- Take a claim for the stream ARGV[2] for ARGV[1] milliseconds, unless another stream has it.
local holder = redis.call('GET', KEYS[1]) or ARGV[2]
if holder == ARGV[2] then
  redis.call('SET', KEYS[1], holder, 'PX', ARGV[1])
end
return holder
