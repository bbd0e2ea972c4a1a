-- Publish some events of one publisher on one channel, each once, however often they are sent.
--
-- KEYS  1 the log, a stream: n (number), e (event), d (data), k (key, if it has one)
--       2 what is known of the channel, a hash: n (events so far), f (of which are gone), b (bytes
--         kept), i (id of the last one), e (its name), a (whether a worker has said that it is at
--         it), and k:<key> for each key: who has taken it
--       3 the number of the last event that this publisher is done with
-- ARGV  1 ttl in ms  2 most events  3 most bytes  4 topic  5 name of the ack  6 publisher
--       7 how long KEYS[3] lives, in ms; then for each event: number, key or '', event, data
--
-- Answers 1 for each event that stands in the channel by this publisher, 0 where the key is taken.
-- A further attempt finds its numbers in KEYS[3], and so does a first one that comes after it.
local log, about, seen = KEYS[1], KEYS[2], KEYS[3]
local most, most_bytes, publisher = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[6]
local done = tonumber(redis.call('GET', seen) or 0)
local known = redis.call('HMGET', about, 'n', 'f', 'b')
local n, gone, bytes = tonumber(known[1] or 0), tonumber(known[2] or 0), tonumber(known[3] or 0)
local first, results, news, learnt, failure = n + 1, {}, {}, {}, nil
local taken = {}

for at = 8, #ARGV, 4 do
  local number, key, event, data = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local token = publisher .. ':' .. ARGV[at]
  local owner = key ~= '' and (taken[key] or redis.call('HGET', about, 'k:' .. key))
  if number <= done or owner then
    results[#results + 1] = (number <= done and (key == '' or owner == token)) and 1 or 0
    done = math.max(done, number)
  else
    local id
    if key == '' then
      id = redis.pcall('XADD', log, '*', 'n', n + 1, 'e', event, 'd', data)
    else
      id = redis.pcall('XADD', log, '*', 'n', n + 1, 'e', event, 'd', data, 'k', key)
    end
    if type(id) == 'table' then
      failure = id
      break
    end
    n, bytes, done = n + 1, bytes + #event + #data, number
    results[#results + 1] = 1
    for _, word in ipairs({id, event, data}) do
      news[#news + 1] = word
    end
    if key ~= '' then
      taken[key] = token
      for _, word in ipairs({'k:' .. key, token}) do
        learnt[#learnt + 1] = word
      end
    end
    if event == ARGV[5] then
      for _, word in ipairs({'a', 1}) do
        learnt[#learnt + 1] = word
      end
    end
  end
end

-- What is over the bounds goes, the oldest first, and a user's key with it; keys of ours stay.
local forgotten = {}
while n - gone > 1 and (n - gone > most or bytes > most_bytes) do
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if not oldest then
    gone, bytes = n, 0
    break
  end
  redis.call('XDEL', log, oldest[1])
  local fields = {}
  for at = 1, #oldest[2], 2 do
    fields[oldest[2][at]] = oldest[2][at + 1]
  end
  if fields.n and fields.e and fields.d then
    gone, bytes = gone + 1, bytes - #fields.e - #fields.d
  end
  if fields.k and string.sub(fields.k, 1, 2) == 'u:' then
    forgotten[#forgotten + 1] = 'k:' .. fields.k
  end
end

redis.call('SET', seen, done, 'PX', ARGV[7])
if #news > 0 then
  redis.call('HSET', about, 'n', n, 'f', gone, 'b', bytes, 'i', news[#news - 2],
             'e', news[#news - 1], unpack(learnt))
  for _, field in ipairs(forgotten) do
    redis.call('HDEL', about, field)
  end
  redis.call('PEXPIRE', log, ARGV[1])
  redis.call('PEXPIRE', about, ARGV[1])
  redis.pcall('PUBLISH', ARGV[4], first .. '\n' .. table.concat(news, '\n'))
end
return failure or results
