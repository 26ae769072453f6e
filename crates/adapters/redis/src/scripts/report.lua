-- Keeps what a process reports about a hub in place of what it reported before, and forgets old reports.
-- KEYS: the reports on the hub. ARGV: time, the reporter, the age in milliseconds of the moment that it reports or
-- nothing, its state.

local now = clock()
local known = redis.call('HGETALL', KEYS[1])
for at = 1, #known, 2 do
  local reported = tonumber(string.match(known[at + 1], '^%d+'))
  if now - reported >= FORGOTTEN_MS then redis.call('HDEL', KEYS[1], known[at]) end
end
local moment = ARGV[3] == '' and '-' or whole(math.max(now - tonumber(ARGV[3]), 0))
redis.call('HSET', KEYS[1], ARGV[2], whole(now) .. ' ' .. moment .. ' ' .. ARGV[4])
return { 'OK' }
