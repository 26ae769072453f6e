-- The common part of the scripts for a single rollout. Each script reads and checks first, and
-- writes last, so that a refused call has changed nothing. A server without memory refuses the
-- first write.

local HEAD, NUMBERS, HEADERS, MANIFESTS, STATES, OPEN, TALLIES, GROUPS, COUNTED = unpack(KEYS)

-- Returns a unique number: the server's `time` in microseconds, or `last` + 1 if that is larger.
local function stamp(time, last)
  return whole(math.max(time[1] * 1000000 + time[2], last + 1))
end

-- Returns the headers and rows of batches.
local function page(version, numbers)
  local plan_completed_at = redis.call('HGET', HEAD, 'plan_completed_at') or 0
  return { 'OK', version, clock(), plan_completed_at, fields(HEADERS, numbers),
    fields(HEAD, numbers) }
end

-- Returns a batch with data of its rollout: the time, the rollout's control, the completion time of
-- the plan, the stamp of the last batch newly counted by budgets, the header, the row, the state,
-- and the manifest if requested.
local function loaded(number, control, plan_completed_at, budget_stamp, row, is_whole)
  local manifest = is_whole and redis.call('HGET', MANIFESTS, number)
  return clock(), control, plan_completed_at or 0, budget_stamp or 0,
    redis.call('HGET', HEADERS, number), row,
    redis.call('HGET', STATES, number) or '', manifest or ''
end

-- Returns the checksum of all batches: the number of batches, the number of devices, and the sum of
-- the fingerprints. `Checksum`.
local function checksum()
  local held = redis.call('HMGET', HEAD, 'batches', 'devices', 'sum')
  return { held[1] or '0', held[2] or '0', held[3] or '0' }
end

-- Returns whether a newer release has written the data. All scripts leave such data unchanged.
local function is_newer(format)
  return tonumber(format or FORMAT) > FORMAT
end
