-- Takes or renews the right to drive a rollout. Gives who has it and until when, if another one.
-- KEYS: the rollout's roster. ARGV: time, holder, milliseconds.

local now = clock()
local holder, ends = unpack(redis.call('HMGET', KEYS[1], 'holder', 'ends'))
if holder and holder ~= ARGV[2] and tonumber(ends) > now then
  return { 'OK', holder, tonumber(ends) }
end
redis.call('HSET', KEYS[1], 'holder', ARGV[2], 'ends', whole(later(now, tonumber(ARGV[3]))))
return { 'OK' }
