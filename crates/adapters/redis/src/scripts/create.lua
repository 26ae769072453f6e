-- Stores a rollout's record unless there is one.
-- ARGV: time, record, version, lineage, plan, stance, stage, attempt, by what batches are added. Gives the record that was
-- there.

if version then return { 'OK', redis.call('HGET', HEAD, 'record') } end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'version', ARGV[3], 'lineage', ARGV[4], 'plan', ARGV[5], 'stance', ARGV[6], 'stage', ARGV[7],
  'attempt', ARGV[8], 'adding', ARGV[9], 'epoch', 0)
return { 'OK' }
