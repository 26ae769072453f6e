-- Stores the report of a process about a hub, replacing the process's previous report, and removes
-- old reports.
-- KEYS: reports about the hub. ARGV: time, reporter, age in milliseconds of the reported moment (or
-- empty), reported state.

local now = clock()
local known = redis.call('HGETALL', KEYS[1])
for at = 1, #known, 2 do
  local reported = tonumber(string.match(known[at + 1], '^%d+'))
  if now - reported >= REPORT_RETENTION_MS then redis.call('HDEL', KEYS[1], known[at]) end
end
local moment = ARGV[3] == '' and '-' or whole(math.max(now - tonumber(ARGV[3]), 0))
redis.call('HSET', KEYS[1], ARGV[2], whole(now) .. ' ' .. moment .. ' ' .. ARGV[4])
return { 'OK' }
