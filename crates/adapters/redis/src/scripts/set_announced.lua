-- Notes up to which version a rollout was announced. Never goes back.
-- KEYS: the rollout's roster, its record. ARGV: time, the rollout's id, version.

if redis.call('HGET', KEYS[2], 'id') ~= ARGV[2] then return { 'OK' } end
local announced = tonumber(redis.call('HGET', KEYS[1], 'announced') or 0)
if tonumber(ARGV[3]) > announced then redis.call('HSET', KEYS[1], 'announced', ARGV[3]) end
return { 'OK' }
