-- The common part of the scripts for a hub's permits: the counterpart of `HubPermits` in
-- twincast-core, with the same names. A single hash contains the limiter's numbers, and a field for
-- each rollout's share.

local function read_limiter(values)
  return {
    next_us = tonumber(values.next_us or 0),
    factor = tonumber(values.factor or 1),
    factor_at = tonumber(values.factor_at or 0),
  }
end

-- Returns the id of the server's run, changed by a restart or a failover; nil if the server does
-- not provide an id.
local function server_run()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%x+)') or nil
end

local function exact(number)
  return string.format('%.17g', number)
end

local function read_hub()
  local values, shares = {}, {}
  local stored = redis.call('HGETALL', KEYS[1])
  for at = 1, #stored, 2 do
    local rollout = string.match(stored[at], '^share:(.+)$')
    if rollout then
      local used, asking_until, next_us = string.match(stored[at + 1], '^(%S+) (%S+) (%S+)$')
      shares[rollout] = {
        used = tonumber(used), asking_until = tonumber(asking_until), next_us = tonumber(next_us),
      }
    else
      values[stored[at]] = stored[at + 1]
    end
  end
  return read_limiter(values), shares
end

local function write_limiter(limiter, ...)
  redis.call('HSET', KEYS[1], 'next_us', exact(limiter.next_us), 'factor', exact(limiter.factor),
    'factor_at', exact(limiter.factor_at), ...)
end

-- Converts to seconds like `Duration::as_secs_f64`.
local function seconds(ms)
  return math.floor(ms / 1000) + ms % 1000 * 1e6 / 1e9
end

local function factor_at(limiter, now)
  local since = math.max(now - limiter.factor_at, 0)
  return math.min(limiter.factor + seconds(since) * CLIMB_PER_SECOND, 1)
end
