-- Stores a rollout's record unless there is one.
-- ARGV: time, record, version, plan, stance, stage, attempt, by what batches are added. Gives the record that was there.

if version then return { 'OK', redis.call('HGET', HEAD, 'record') } end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'version', ARGV[3], 'plan', ARGV[4], 'stance', ARGV[5], 'stage', ARGV[6],
  'attempt', ARGV[7], 'adding', ARGV[8], 'epoch', 0)
return { 'OK' }
