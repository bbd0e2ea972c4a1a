-- Publish events of one publisher on one channel, each once, even if they are sent repeatedly.
--
-- KEYS  1 the log, a stream: g (generation), n (number), e (event), d (data), k (key, if the event
--         has one)
--       2 the counters of the channel, a hash: g (generation), n (events so far), f (dropped
--         events), b (bytes kept), i (id of the last event), e (its name), p (its publisher), s (the
--         sequence number of the last event that p has finished), t (the expiry of both keys, in
--         ms), and k:<key> for each key: the event that has it
--       3 s of this publisher, if another one has published since
-- ARGV  1 ttl in ms  2 max. events  3 max. bytes  4 topic  5 key of the ack event
--       6 publisher  7 expiry of KEYS[3] in ms; then for each event: sequence number, key or '',
--         event, data
--
-- Returns 1 for each event that this publisher has published, 0 if its key is in use. A repeated
-- command finds its sequence numbers in s; so does the first one if it arrives later.
--
-- Redis may evict one of the two keys. The channel is then created again, with another generation.
--
-- Readers wait for each Redis command. One event of the publisher of the last event takes four
-- commands: HMGET, XADD, HSET and PUBLISH.
local log, about, seen = KEYS[1], KEYS[2], KEYS[3]
local ttl, publisher = tonumber(ARGV[1]), ARGV[6]
local about_fields = redis.call('HMGET', about, 'n', 'f', 'b', 'p', 's', 't', 'g')
local n, dropped = tonumber(about_fields[1] or 0), tonumber(about_fields[2] or 0)
local bytes, generation = tonumber(about_fields[3] or 0), about_fields[7]
local before, done = about_fields[4], about_fields[5]
if before ~= publisher then
  done = redis.call('GET', seen) or 0
end
done = tonumber(done)
local was_done, was_dropped, is_new = done, dropped, false
local results, taken, fields_to_set, message = {}, {}, {}, {''}
local id, last, failure

local function set_field(field, value)
  fields_to_set[#fields_to_set + 1], fields_to_set[#fields_to_set + 2] = field, value
end

local function log_event(event, data, key, is_first)
  local words = {
    'XADD', log, 'NOMKSTREAM', '*', 'g', generation, 'n', n + 1, 'e', event, 'd', data
  }
  if is_first then -- removes the events of a log without counters
    words[3], words[4] = 'MAXLEN', 1
    table.insert(words, 5, '*')
  end
  if key ~= '' then
    words[#words + 1] = 'k'
    words[#words + 1] = key
  end
  return redis.pcall(unpack(words))
end

-- Add an event to the log, which is created if it or its counters are missing.
local function add(number, event, data, key)
  local added = n > 0 and log_event(event, data, key, false)
  if not added then
    is_new, n, dropped, was_dropped, bytes = true, 0, 0, 0, 0
    generation = string.sub(redis.sha1hex(publisher .. ':' .. number), 1, 8)
    -- This must be the first write: if Redis is full, it refuses no other one of a script.
    added = log_event(event, data, key, true)
  end
  if not id then
    message[1] = generation .. '.' .. n + 1
  end
  return added
end

-- Return the event that has a key. Keys are forgotten with the log, except that the job stays taken.
local function owner_of(key, number)
  local owner = taken[key] or redis.call('HGET', about, 'k:' .. key)
  if owner and number > done and not taken[key] and key ~= ARGV[5] then
    return redis.call('EXISTS', log) == 1 and owner
  end
  return owner
end

for at = 8, #ARGV, 4 do
  local number, key, event, data = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local token, owner
  if key ~= '' then
    token, owner = publisher .. ':' .. ARGV[at], owner_of(key, number)
  end
  if number <= done or owner then
    results[#results + 1] = (number <= done and (key == '' or owner == token)) and 1 or 0
    done = math.max(done, number)
  else
    local added = add(ARGV[at], event, data, key)
    if type(added) == 'table' then
      failure = added
      break
    end
    id, last, n, bytes, done = added, event, n + 1, bytes + #event + #data, number
    results[#results + 1] = 1
    message[#message + 1], message[#message + 2], message[#message + 3] = id, event, data
    if token then
      taken[key] = token
      set_field('k:' .. key, token)
    end
  end
end

-- Drop the oldest events over the limits, and users' keys with them; our own keys stay.
local most, most_bytes, dropped_keys = tonumber(ARGV[2]), tonumber(ARGV[3]), {}
while n - dropped > 1 and (n - dropped > most or bytes > most_bytes) do
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  if not oldest then
    dropped, bytes = n, 0
    break
  end
  redis.call('XDEL', log, oldest[1])
  local fields = {}
  for at = 1, #oldest[2], 2 do
    fields[oldest[2][at]] = oldest[2][at + 1]
  end
  if fields.g and fields.n and fields.e and fields.d then
    dropped, bytes = dropped + 1, bytes - #fields.e - #fields.d
  end
  if fields.k and string.sub(fields.k, 1, 2) == 'u:' then
    dropped_keys[#dropped_keys + 1] = 'k:' .. fields.k
  end
end

if id and is_new then
  local ack = redis.call('HGET', about, 'k:' .. ARGV[5])
  redis.call('DEL', about)
  about_fields[6] = nil
  set_field('g', generation)
  if ack then
    set_field('k:' .. ARGV[5], ack)
  end
end
if id then
  if dropped ~= was_dropped then
    set_field('f', dropped)
  end
  if is_new or before ~= publisher then
    set_field('p', publisher)
  end
  if before and before ~= publisher then -- its key is in the same hash slot
    local other = string.sub(seen, 1, -#publisher - 1) .. before
    redis.call('SET', other, about_fields[5], 'PX', ARGV[7])
  end
  -- The expiry is longer than the ttl, so that not each event has to renew it.
  local now, longer = tonumber(string.match(id, '%d+')), nil
  if now + ttl > tonumber(about_fields[6] or 0) then
    longer = ttl + math.floor(math.min(ttl / 16, 60000))
    set_field('t', now + longer)
  end
  redis.call('HSET', about, 'n', n, 'b', bytes, 'i', id, 'e', last, 's', done, unpack(fields_to_set))
  for _, field in ipairs(dropped_keys) do
    redis.call('HDEL', about, field)
  end
  if longer then
    redis.call('PEXPIRE', log, longer)
    redis.call('PEXPIRE', about, longer)
  end
  redis.pcall('PUBLISH', ARGV[4], table.concat(message, '\n'))
elseif done > was_done then
  if before == publisher then
    redis.call('HSET', about, 's', done)
  else
    redis.call('SET', seen, done, 'PX', ARGV[7])
  end
end
return failure or results
