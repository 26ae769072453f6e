-- Adds batches. Existing batches stay unchanged.
-- ARGV: time, permission for adding batches, and for each batch: number, fingerprint, header,
-- devices, row without the time, field in TALLIES, name in OPEN, manifest, number of groups, and
-- names of the groups. Returns the checksum of all batches.

if not version then return { 'NO_ROLLOUT' } end
if adding ~= ARGV[2] then return { 'SUPERSEDED' } end

local time = redis.call('TIME')
local now, first = clock(time), stamp(time, 0)
local at = 3
while at <= #ARGV do
  local number, fingerprint, header, devices, row, tally, open, manifest, groups =
    unpack(ARGV, at, at + 8)
  groups = tonumber(groups)
  if redis.call('HSETNX', MANIFESTS, number, manifest) == 1 then
    for group = at + 9, at + 8 + groups do redis.call('HINCRBY', GROUPS, ARGV[group], devices) end
    redis.call('HINCRBY', HEAD, 'batches', 1)
    redis.call('HINCRBY', HEAD, 'devices', devices)
    redis.call('HINCRBY', HEAD, 'sum', fingerprint)
    redis.call('HSET', HEADERS, number, header)
    redis.call('HSET', HEAD, number, first .. ' ' .. row .. ' ' .. whole(now))
    redis.call('ZADD', NUMBERS, number, number)
    if tonumber(devices) > 0 then
      redis.call('HINCRBY', TALLIES, tally, devices)
      redis.call('ZADD', OPEN, 0, open)
    end
  end
  at = at + 9 + groups
end
return { 'OK', unpack(checksum()) }
