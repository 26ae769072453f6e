-- Replaces a group's line by one that was made from the version before it.
-- KEYS: the line. ARGV: time, the version that is stored, the new one, the line.

local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= ARGV[2] then return { 'SUPERSEDED' } end
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'line', ARGV[4])
return { 'OK' }
