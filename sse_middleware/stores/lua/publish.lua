-- Publish some events of one publisher on one channel, each once, however often they are sent.
--
-- KEYS  1 the log, a stream: n (number), e (event), d (data), k (key, if it has one)
--       2 what is known of the channel, a hash: n, i, e, a, b and a field for each key
--       3 the number of the last event that this publisher is done with
-- ARGV  1 ttl in ms  2 most events  3 most bytes  4 topic  5 name of the ack  6 publisher
--       7 how long 3 is kept, in ms, then for each event: number, key, event, data
--
-- Answers 1 for each event that stands in the channel by this publisher, 0 where the key is taken.
-- A second attempt finds its number in KEYS[3], and a first one that comes later than it too.
local log, about, seen = KEYS[1], KEYS[2], KEYS[3]
local ttl, most, most_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local publisher = ARGV[6]
local done = tonumber(redis.call('GET', seen) or 0)
local known = redis.call('HMGET', about, 'n', 'b')
local n, bytes = tonumber(known[1] or 0), tonumber(known[2] or 0)
local results, news, first, failure = {}, {}, n + 1, nil

for at = 8, #ARGV, 4 do
  local number, key, event, data = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local token = publisher .. ':' .. ARGV[at]
  local owner = key ~= '' and redis.call('HGET', about, 'k:' .. key)
  if number <= done then
    table.insert(results, (key == '' or owner == token) and 1 or 0)
  elseif owner then
    table.insert(results, 0)
    done = number
  else
    local entry = {'n', n + 1, 'e', event, 'd', data}
    if key ~= '' then
      table.insert(entry, 'k')
      table.insert(entry, key)
    end
    local id = redis.pcall('XADD', log, '*', unpack(entry))
    if type(id) == 'table' then
      failure = id
      break
    end
    n, bytes, done = n + 1, bytes + #event + #data, number
    redis.call('HSET', about, 'n', n, 'i', id, 'e', event)
    if event == ARGV[5] then
      redis.call('HSET', about, 'a', 1)
    end
    if key ~= '' then
      redis.call('HSET', about, 'k:' .. key, token)
    end
    table.insert(results, 1)
    table.insert(news, id)
    table.insert(news, event)
    table.insert(news, data)
  end
end

-- What is over the bounds goes, the oldest first, and its key with it; those of ours stay.
local length = redis.call('XLEN', log)
while length > 1 and (length > most or bytes > most_bytes) do
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  redis.call('XDEL', log, oldest[1])
  length = length - 1
  local fields = {}
  for at = 1, #oldest[2], 2 do
    fields[oldest[2][at]] = oldest[2][at + 1]
  end
  if fields.n and fields.e and fields.d then
    bytes = bytes - #fields.e - #fields.d
  end
  if fields.k and string.sub(fields.k, 1, 2) == 'u:' then
    redis.call('HDEL', about, 'k:' .. fields.k)
  end
end

if #news > 0 then
  redis.call('HSET', about, 'b', bytes)
  redis.call('PEXPIRE', log, ttl)
  redis.call('PEXPIRE', about, ttl)
end
redis.call('SET', seen, done, 'PX', ARGV[7])
if #news > 0 then
  redis.pcall('PUBLISH', ARGV[4], first .. '\n' .. table.concat(news, '\n'))
end
if failure then
  return failure
end
return results
