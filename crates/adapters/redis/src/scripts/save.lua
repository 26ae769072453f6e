-- Replaces a rollout's record. With another plan, all of the old one is gone: its keys are few
-- however large it was, and the server frees what they held in the background. Epochs go on, so
-- that no plan's lease is ever mistaken for another plan's.
-- ARGV: time, record, version, plan, stance, stage, attempt, by what batches are added, version that it was made from.

if not version then return { 'NO_ROLLOUT' } end
if version ~= ARGV[9] then return { 'SUPERSEDED' } end
if plan ~= ARGV[4] then redis.call('UNLINK', unpack(KEYS)) end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'version', ARGV[3], 'plan', ARGV[4], 'stance', ARGV[5], 'stage', ARGV[6],
  'attempt', ARGV[7], 'adding', ARGV[8], 'epoch', epoch)
return { 'OK' }
