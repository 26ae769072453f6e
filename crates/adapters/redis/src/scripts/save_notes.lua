-- Replaces the notes on a rollout.
-- ARGV: time, version, lineage, notes.

if not version then return { 'NO_ROLLOUT' } end
if version ~= ARGV[2] or lineage ~= ARGV[3] then return { 'SUPERSEDED' } end
redis.call('HSET', HEAD, 'notes', ARGV[4])
return { 'OK' }
