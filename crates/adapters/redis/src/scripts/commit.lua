-- Stores what was made of a batch, unless batch or rollout have changed since it was read.
-- ARGV: time, batch, the stamp that it was read with, the version and lineage that the rollout must have or nothing, the stamp
-- of the last batch that budgets began to count or nothing, row, state or nothing, the batch's name in OPEN, 1 if it is to be
-- there or 0; then three lists, each after its length: fields of tallies with what is added, names that are added to BEGUN,
-- and names that are taken off it. Gives the new stamp, what is wanted of workers, and the time; else nothing, and the batch as
-- `told` if it is there.

local format, wanted, version, lineage, begun, row =
  unpack(redis.call('HMGET', HEAD, 'format', 'wanted', 'version', 'lineage', 'begun', ARGV[2]))
if is_newer(format) then return { 'NEWER', tonumber(format) } end
if not row then return { 'OK', false } end
if string.match(row, '^%d+') ~= ARGV[3]
  or ARGV[4] ~= '' and (version ~= ARGV[4] or lineage ~= ARGV[5])
  or ARGV[6] ~= '' and (begun or '0') ~= ARGV[6]
then
  local stance, whole_at = unpack(redis.call('HMGET', HEAD, 'stance', 'whole_at'))
  return { 'OK', false, told(ARGV[2], stance, whole_at, begun, row) }
end

local time = redis.call('TIME')
local new = stamp(time, tonumber(ARGV[3]))
redis.call('HSET', HEAD, ARGV[2], new .. ' ' .. ARGV[7])
if ARGV[8] ~= '' then redis.call('HSET', STATES, ARGV[2], ARGV[8]) end
if ARGV[10] == '1' then
  redis.call('ZADD', OPEN, 0, ARGV[9])
elseif ARGV[10] == '0' then
  redis.call('ZREM', OPEN, ARGV[9])
end
local at = 11
local function each(step, call)
  local last = at + tonumber(ARGV[at]) * step
  for first = at + 1, last, step do call(ARGV[first], ARGV[first + 1]) end
  at = last + 1
end
each(2, function(field, by) redis.call('HINCRBY', TALLIES, field, by) end)
each(1, function(name)
  redis.call('ZADD', BEGUN, 0, name)
  redis.call('HSET', HEAD, 'begun', new)
end)
each(1, function(name) redis.call('ZREM', BEGUN, name) end)
return { 'OK', new, wanted, clock(time) }
