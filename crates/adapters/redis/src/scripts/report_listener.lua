-- Keeps what a listener to a hub's feedback says of itself, and forgets reports that say nothing any more.
-- KEYS: the hub's listeners. ARGV: time, the listener, how long ago it has heard in milliseconds or nothing, its state.

local now = clock()
local known = redis.call('HGETALL', KEYS[1])
for at = 1, #known, 2 do
  local reported = tonumber(string.match(known[at + 1], '^%d+'))
  if now - reported >= FORGOTTEN_MS then redis.call('HDEL', KEYS[1], known[at]) end
end
local heard = ARGV[3] == '' and '-' or whole(math.max(now - tonumber(ARGV[3]), 0))
redis.call('HSET', KEYS[1], ARGV[2], whole(now) .. ' ' .. heard .. ' ' .. ARGV[4])
return { 'OK' }
