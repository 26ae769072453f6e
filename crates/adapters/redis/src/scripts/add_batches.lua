-- Adds batches. Those that are there stay as they are.
-- ARGV: time, by what they are added, and for each batch: number, fingerprint, header, devices, stage, hub, place, manifest,
-- and how many groups it is in, with their names. Gives the checksum of all batches.

if not version then return { 'NO_ROLLOUT' } end
if adding ~= ARGV[2] then return { 'SUPERSEDED' } end

local size = redis.call('STRLEN', OUTCOMES)
local before = size
local now = clock()
local at = 3
while at <= #ARGV do
  local number, fingerprint, header, devices, stage, hub, place, manifest, groups = unpack(ARGV, at, at + 8)
  groups = tonumber(groups)
  if redis.call('HSETNX', MANIFESTS, number, manifest) == 1 then
    local row = {
      batch = number,
      first = size * 2, devices = tonumber(devices), stage = stage, hub = hub, place = '.' .. place,
      begun = groups > 0 and '0' or '-', sent_at = 0,
      epoch = '0', strikes = 0, counted_in = '0', ends = 0, holder = NOBODY, counts = {},
      newest = 1, silent = 1, added_at = now,
    }
    for outcome = 0, OUTCOME_COUNT - 1 do row.counts[outcome] = 0 end
    row.counts[PENDING] = row.devices
    size = size + math.ceil(row.devices / 2)
    for group = at + 9, at + 8 + groups do redis.call('HINCRBY', GROUPS, ARGV[group], devices) end
    redis.call('HINCRBY', HEAD, 'batches', 1)
    redis.call('HINCRBY', HEAD, 'devices', devices)
    redis.call('HINCRBY', HEAD, 'sum', fingerprint)
    redis.call('HSET', HEADERS, number, header)
    redis.call('ZADD', NUMBERS, number, number)
    write_row(row)
    if row.devices > 0 then
      redis.call('HINCRBY', TALLIES, tally(row, PENDING), devices)
      redis.call('ZADD', OPEN, 0, open_name(row))
    end
  end
  at = at + 9 + groups
end
-- Writing the last byte makes all before it: pending is zero.
if size > before then redis.call('SETRANGE', OUTCOMES, whole(size - 1), '\0') end
return { 'OK', unpack(checksum()) }
