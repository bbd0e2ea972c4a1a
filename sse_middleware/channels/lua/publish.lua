-- Publish some events of one publisher on one channel, each once, however often they are sent.
--
-- KEYS  1 the log, a stream: n (number), e (event), d (data), k (key, if it has one)
--       2 what is known of the channel, a hash: n (events so far), f (of which are gone), b (bytes
--         kept), i (id of the last one), e (its name), p (who has published it), s (the number of
--         the last event that p is done with), t (until when both keys live, in ms), a (whether a
--         worker has said that it is at it), and k:<key> for each key: who has taken it
--       3 the same number of this publisher, where another one has published since
-- ARGV  1 ttl in ms  2 most events  3 most bytes  4 topic  5 name of the ack  6 publisher
--       7 how long KEYS[3] lives, in ms; then for each event: number, key or '', event, data
--
-- Answers 1 for each event that stands in the channel by this publisher, 0 where the key is taken.
-- A further attempt finds its numbers in s, and so does a first one that comes after it.
--
-- Each command takes its time, and readers wait: one event of who has published the last one takes
-- four, HMGET, XADD, HSET and PUBLISH.
local log, about, seen = KEYS[1], KEYS[2], KEYS[3]
local ttl, publisher = tonumber(ARGV[1]), ARGV[6]
local known = redis.call('HMGET', about, 'n', 'f', 'b', 'p', 's', 't')
local n, gone, bytes = tonumber(known[1] or 0), tonumber(known[2] or 0), tonumber(known[3] or 0)
local before, done = known[4], known[5]
if before ~= publisher then
  done = redis.call('GET', seen) or 0
end
done = tonumber(done)
local was_done, was_gone, news, results, taken, learnt = done, gone, {n + 1}, {}, {}, {}
local id, last, failure

local function learn(field, value)
  learnt[#learnt + 1], learnt[#learnt + 2] = field, value
end


-- Where there is no log, a new one has to be given its time.
local function add(...)
  local added = redis.pcall('XADD', log, 'NOMKSTREAM', '*', ...)
  if not added then
    added, known[6] = redis.pcall('XADD', log, '*', ...), nil
  end
  return added
end

for at = 8, #ARGV, 4 do
  local number, key, event, data = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local added, token, owner
  if key ~= '' then
    token = publisher .. ':' .. ARGV[at]
    owner = taken[key] or redis.call('HGET', about, 'k:' .. key)
  end
  if number <= done or owner then
    results[#results + 1] = (number <= done and (key == '' or owner == token)) and 1 or 0
    done = math.max(done, number)
  else
    if token then
      added = add('n', n + 1, 'e', event, 'd', data, 'k', key)
    else
      added = add('n', n + 1, 'e', event, 'd', data)
    end
    if type(added) == 'table' then
      failure = added
      break
    end
    id, last, n, bytes, done = added, event, n + 1, bytes + #event + #data, number
    results[#results + 1] = 1
    news[#news + 1], news[#news + 2], news[#news + 3] = id, event, data
    if token then
      taken[key] = token
      learn('k:' .. key, token)
    end
    if event == ARGV[5] then
      learn('a', 1)
    end
  end
end

-- What is over the bounds goes, the oldest first, and a user's key with it; keys of ours stay.
local most, most_bytes, forgotten = tonumber(ARGV[2]), tonumber(ARGV[3]), {}
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

if id then
  if gone ~= was_gone then
    learn('f', gone)
  end
  if before ~= publisher then
    learn('p', publisher)
    if before then -- its key is of the same slot
      local other = string.sub(seen, 1, -#publisher - 1) .. before
      redis.call('SET', other, known[5], 'PX', ARGV[7])
    end
  end
  -- Both keys live a little longer than they have to, and are not told so for each event.
  local now, longer = tonumber(string.match(id, '%d+')), nil
  if now + ttl > tonumber(known[6] or 0) then
    longer = ttl + math.floor(math.min(ttl / 16, 60000))
    learn('t', now + longer)
  end
  redis.call('HSET', about, 'n', n, 'b', bytes, 'i', id, 'e', last, 's', done, unpack(learnt))
  for _, field in ipairs(forgotten) do
    redis.call('HDEL', about, field)
  end
  if longer then
    redis.call('PEXPIRE', log, longer)
    redis.call('PEXPIRE', about, longer)
  end
  redis.pcall('PUBLISH', ARGV[4], table.concat(news, '\n'))
elseif done > was_done then
  if before == publisher then
    redis.call('HSET', about, 's', done)
  else
    redis.call('SET', seen, done, 'PX', ARGV[7])
  end
end
return failure or results
