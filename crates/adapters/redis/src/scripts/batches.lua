-- A page of a plan's batches in the order of their numbers.
-- ARGV: time, lowest number, limit.

if redis.call('EXISTS', HEAD) == 0 then return { 'NO_ROLLOUT' } end
return page(redis.call('ZRANGEBYSCORE', NUMBERS, ARGV[2], '+inf', 'LIMIT', 0, ARGV[3]))
