-- Removes a removed rollout's name from the list of all rollouts, unless the name was listed again
-- in the meantime.
-- KEYS: list. ARGV: time, name, score of the name before the removal of the rollout.

if redis.call('ZSCORE', KEYS[1], ARGV[2]) == ARGV[3] then redis.call('ZREM', KEYS[1], ARGV[2]) end
return { 'OK' }
