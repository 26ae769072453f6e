-- Removes a rollout from the active rollouts, unless a newer version is or will be stored, or the
-- name belongs to another rollout.
-- KEYS: active rollouts. ARGV: time, name, version.

local newest = redis.call('ZSCORE', KEYS[1], ARGV[2])
if newest and tonumber(newest) == tonumber(ARGV[3]) then
  redis.call('ZREM', KEYS[1], ARGV[2])
end
return { 'OK' }
