-- The first of a hub's batches on which something is left to do.
-- ARGV: time, hub, limit.

local version = redis.call('HGET', HEAD, 'version')
if not version then return { 'NO_ROLLOUT' } end
local from, to = '[' .. ARGV[2] .. ':', '(' .. ARGV[2] .. ';'
local names = redis.call('ZRANGEBYLEX', OPEN, from, to, 'LIMIT', 0, ARGV[3])
local numbers = {}
for at, name in ipairs(names) do
  numbers[at] = whole(tonumber(string.sub(name, #ARGV[2] + 2)))
end
return page(version, numbers)
