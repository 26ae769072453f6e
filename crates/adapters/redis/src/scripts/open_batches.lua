-- The first of a hub's batches, of stages below one, on which something is left to do.
-- Those that a crash may still undo are left out.
-- ARGV: time, hub, stage, limit, and the milliseconds after which a write is durable.

if not version then return { 'NO_ROLLOUT' } end
local from = '[' .. ARGV[2] .. ':'
local to = '(' .. ARGV[2] .. string.format(':%05.0f', tonumber(ARGV[3]))
local names = redis.call('ZRANGEBYLEX', OPEN, from, to, 'LIMIT', 0, ARGV[4])
local numbers = {}
for at, name in ipairs(names) do
  numbers[at] = whole(tonumber(string.sub(name, -10)))
end
local durable_after = tonumber(ARGV[5])
if durable_after == 0 then return page(version, numbers) end
local whole_at, now, durable = redis.call('HGET', HEAD, 'whole_at'), clock(), {}
for at, text in ipairs(fields(HEAD, numbers)) do
  local row = row_of(numbers[at], text)
  if is_durable(row, whole_at, now, durable_after) then durable[#durable + 1] = numbers[at] end
end
return page(version, durable)
