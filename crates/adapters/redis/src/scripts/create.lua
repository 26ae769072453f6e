-- Stores a rollout's record unless there is one.
-- ARGV: time, record, id, version, lineage, plan, how the rollout stands, what is wanted of workers, by what batches are added.
-- Gives the record that was there.

if version then return { 'OK', redis.call('HGET', HEAD, 'record') } end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'id', ARGV[3], 'version', ARGV[4], 'lineage', ARGV[5], 'plan', ARGV[6], 'stance', ARGV[7],
  'wanted', ARGV[8], 'adding', ARGV[9])
return { 'OK' }
