-- Stores a rollout's record, unless a record exists.
-- ARGV: time, record, id, version, lineage, plan, control, directive for workers, permission for
-- adding batches, notes. Returns the existing record and notes.

if version then return { 'OK', unpack(redis.call('HMGET', HEAD, 'record', 'notes')) } end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'id', ARGV[3], 'version', ARGV[4], 'lineage', ARGV[5], 'plan', ARGV[6],
  'control', ARGV[7], 'directive', ARGV[8], 'adding', ARGV[9], 'notes', ARGV[10])
return { 'OK' }
