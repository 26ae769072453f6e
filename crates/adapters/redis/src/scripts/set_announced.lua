-- Notes up to which version a rollout was announced. Never goes back.
-- KEYS: the rollout's roster. ARGV: time, version.

local announced = tonumber(redis.call('HGET', KEYS[1], 'announced') or 0)
if tonumber(ARGV[2]) > announced then redis.call('HSET', KEYS[1], 'announced', ARGV[2]) end
return { 'OK' }
