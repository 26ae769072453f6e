-- Adds batches to a plan that is being made. Those that are there stay as they are.
-- ARGV: time, plan, and for each batch: number, header, devices, stage, hub, place, manifest.

local plan, stance = unpack(redis.call('HMGET', HEAD, 'plan', 'stance'))
if not plan then return { 'NO_ROLLOUT' } end
if plan ~= ARGV[2] or stance ~= PLANNING then return { 'SUPERSEDED' } end

local size = redis.call('STRLEN', OUTCOMES)
local before = size
for at = 3, #ARGV, 7 do
  local number, header, devices, stage, hub, place, manifest = unpack(ARGV, at, at + 6)
  if redis.call('HSETNX', MANIFESTS, number, manifest) == 1 then
    local row = {
      batch = number,
      first = size * 2, devices = tonumber(devices), stage = stage, hub = hub, place = '.' .. place,
      epoch = '0', strikes = 0, counted_in = '0', ends = 0, holder = NOBODY, counts = {},
      newest = 1, silent = 1,
    }
    for outcome = 0, OUTCOME_COUNT - 1 do row.counts[outcome] = 0 end
    row.counts[PENDING] = row.devices
    size = size + math.ceil(row.devices / 2)
    redis.call('HSET', HEADERS, number, header)
    redis.call('ZADD', NUMBERS, number, number)
    write_row(row)
    if row.devices > 0 then
      redis.call('HINCRBY', TALLIES, tally(row, PENDING), devices)
      redis.call('ZADD', OPEN, 0, open_name(row))
    end
  end
end
-- Writing the last byte makes all before it: pending is zero.
if size > before then redis.call('SETRANGE', OUTCOMES, whole(size - 1), '\0') end
return { 'OK' }
