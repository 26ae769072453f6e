-- Replaces the queue of a concurrency group, if the stored version is the expected version.
-- KEYS: queue. ARGV: time, expected version, new version, queue.

local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= ARGV[2] then return { 'SUPERSEDED' } end
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'queue', ARGV[4])
return { 'OK' }
