-- Stores a rollout's record unless there is one.
-- ARGV: time, record, id, version, lineage, plan, stance, stage, attempt, by what batches are added. Gives the record that was
-- there.

if version then return { 'OK', redis.call('HGET', HEAD, 'record') } end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'id', ARGV[3], 'version', ARGV[4], 'lineage', ARGV[5], 'plan', ARGV[6], 'stance', ARGV[7],
  'stage', ARGV[8], 'attempt', ARGV[9], 'adding', ARGV[10], 'epoch', 0)
return { 'OK' }
