-- Replaces a rollout's record. With another plan, all of the old one is gone: its keys are few
-- however large it was, and the server frees what they held in the background.
-- ARGV: time, record, version, plan, stance, version that it was made from.

local version, plan = unpack(redis.call('HMGET', HEAD, 'version', 'plan'))
if not version then return { 'NO_ROLLOUT' } end
if version ~= ARGV[6] then return { 'SUPERSEDED' } end
redis.call('HSET', HEAD,
  'record', ARGV[2], 'version', ARGV[3], 'plan', ARGV[4], 'stance', ARGV[5])
if plan ~= ARGV[4] then
  redis.call('UNLINK', NUMBERS, HEADERS, MANIFESTS, WORK, OUTCOMES, CODES, OPEN, TALLIES)
end
return { 'OK' }
