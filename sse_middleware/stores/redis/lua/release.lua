-- Give up the claim of the stream ARGV[1], unless another stream has it.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
