-- Stores the last published version of a rollout. The stored version never decreases.
-- KEYS: registry and record of the rollout. ARGV: time, id of the rollout, version.

if redis.call('HGET', KEYS[2], 'id') ~= ARGV[2] then return { 'OK' } end
local published = tonumber(redis.call('HGET', KEYS[1], 'published') or 0)
if tonumber(ARGV[3]) > published then redis.call('HSET', KEYS[1], 'published', ARGV[3]) end
return { 'OK' }
