-- Returns the first open batches of a hub, in stages below the given stage.
-- ARGV: time, hub, stage, limit.

if not version then return { 'NO_ROLLOUT' } end
local from = '[' .. ARGV[2] .. ':'
local to = '(' .. ARGV[2] .. string.format(':%05.0f', tonumber(ARGV[3]))
local names = redis.call('ZRANGEBYLEX', OPEN, from, to, 'LIMIT', 0, ARGV[4])
local numbers = {}
for at, name in ipairs(names) do numbers[at] = whole(tonumber(string.sub(name, -10))) end
return page(version, numbers)
