-- What the scripts on one rollout share. Each reads and checks first and writes last, so that
-- what is refused (by us, or by a server that is out of memory, which it tells at the first
-- write) has changed nothing.

local HEAD, NUMBERS, HEADERS, MANIFESTS, STATES, OPEN, TALLIES, GROUPS, BEGUN = unpack(KEYS)

-- A number that is given once: the server's `time` in microseconds, or one more than the `last`.
local function stamp(time, last)
  return whole(math.max(time[1] * 1000000 + time[2], last + 1))
end

-- The headers and rows of batches, for those who want to see them.
local function page(version, numbers)
  local whole_at = redis.call('HGET', HEAD, 'whole_at') or 0
  return { 'OK', version, clock(), whole_at, fields(HEADERS, numbers), fields(HEAD, numbers) }
end

-- A batch with what is stored of its rollout: the time, how the rollout stands, when its plan was whole, the stamp of the last
-- batch that budgets began to count, the header, the row, the state, and the manifest if it is wanted.
local function told(number, stance, whole_at, begun, row, is_whole)
  local manifest = is_whole and redis.call('HGET', MANIFESTS, number)
  return clock(), stance, whole_at or 0, begun or 0,
    redis.call('HGET', HEADERS, number), row, redis.call('HGET', STATES, number) or '', manifest or ''
end

-- The checksum of all batches: how many, of how many devices, and the sum of their fingerprints. `Checksum`.
local function checksum()
  local held = redis.call('HMGET', HEAD, 'batches', 'devices', 'sum')
  return { held[1] or '0', held[2] or '0', held[3] or '0' }
end

-- What a newer release has written is left alone, by every script.
local function is_newer(format)
  return tonumber(format or FORMAT) > FORMAT
end
