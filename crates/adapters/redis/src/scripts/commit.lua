-- Stores the new state of a batch, unless the batch or the rollout has changed since the batch was
-- read.
-- ARGV: time, batch, stamp of the batch at reading, expected version and lineage of the rollout (or
-- empty), stamp of the last batch newly counted by budgets (or empty), row, state (or empty), name
-- of the batch in OPEN, 1 to add the name or 0 to remove the name; then three lists, each preceded
-- by its length: fields of tallies with increments, names to add to COUNTED, and names to remove
-- from COUNTED. Returns the new stamp, the directive for workers, and the time; after a conflict
-- false, and an existing batch in the form of `loaded`.

local format, directive, version, lineage, budget_stamp, row = unpack(redis.call(
  'HMGET', HEAD, 'format', 'directive', 'version', 'lineage', 'budget_stamp', ARGV[2]))
if is_newer(format) then return { 'NEWER', tonumber(format) } end
if not row then return { 'OK', false } end
if string.match(row, '^%d+') ~= ARGV[3]
  or ARGV[4] ~= '' and (version ~= ARGV[4] or lineage ~= ARGV[5])
  or ARGV[6] ~= '' and (budget_stamp or '0') ~= ARGV[6]
then
  local control, plan_completed_at =
    unpack(redis.call('HMGET', HEAD, 'control', 'plan_completed_at'))
  return { 'OK', false, loaded(ARGV[2], control, plan_completed_at, budget_stamp, row) }
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
  redis.call('ZADD', COUNTED, 0, name)
  redis.call('HSET', HEAD, 'budget_stamp', new)
end)
each(1, function(name) redis.call('ZREM', COUNTED, name) end)
return { 'OK', new, directive, clock(time) }
