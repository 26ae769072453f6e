-- Takes a rollout off the active ones unless a newer version was stored, or is about to be, or it is another rollout of
-- that name.
-- KEYS: the active ones. ARGV: time, name, version.

local newest = redis.call('ZSCORE', KEYS[1], ARGV[2])
if newest and tonumber(newest) == tonumber(ARGV[3]) then
  redis.call('ZREM', KEYS[1], ARGV[2])
end
return { 'OK' }
