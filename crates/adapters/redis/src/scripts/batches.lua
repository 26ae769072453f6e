-- Returns a page of a plan's batches in the order of their numbers.
-- ARGV: time, lowest number, limit.

if not version then return { 'NO_ROLLOUT' } end
return page(version, redis.call('ZRANGEBYSCORE', NUMBERS, ARGV[2], '+inf', 'LIMIT', 0, ARGV[3]))
