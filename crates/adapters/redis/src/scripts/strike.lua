-- Takes a removed rollout's name off the list of all, unless it was listed anew in the meantime.
-- KEYS: the list. ARGV: time, name, the score that it had before the rollout was removed.

if redis.call('ZSCORE', KEYS[1], ARGV[2]) == ARGV[3] then redis.call('ZREM', KEYS[1], ARGV[2]) end
return { 'OK' }
