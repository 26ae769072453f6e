-- Removes a rollout with all its keys, which are few however large it was: the server frees what they held in the
-- background.
-- KEYS: those of the rollout, and its roster. ARGV: time, version, lineage.

if not version then return { 'OK' } end
if version ~= ARGV[2] or lineage ~= ARGV[3] then return { 'SUPERSEDED' } end
redis.call('UNLINK', unpack(KEYS))
return { 'OK' }
