-- Stores a rollout's record unless there is one.
-- ARGV: time, record, id, version, lineage, plan, how the rollout stands, what is wanted of workers, by what batches are added,
-- notes. Gives the record and the notes that were there.

if version then return { 'OK', unpack(redis.call('HMGET', HEAD, 'record', 'notes')) } end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'id', ARGV[3], 'version', ARGV[4], 'lineage', ARGV[5], 'plan', ARGV[6], 'stance', ARGV[7],
  'wanted', ARGV[8], 'adding', ARGV[9], 'notes', ARGV[10])
return { 'OK' }
