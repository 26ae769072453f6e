-- Removes a rollout with all its keys. A rollout of any size has few keys, and the server frees
-- their memory in the background.
-- KEYS: keys of the rollout, and its registry. ARGV: time, version, lineage.

if not version then return { 'OK' } end
if version ~= ARGV[2] or lineage ~= ARGV[3] then return { 'SUPERSEDED' } end
redis.call('UNLINK', unpack(KEYS))
return { 'OK' }
