-- Replaces a rollout's record. With another plan, all of the old one is gone: its keys are few
-- however large it was, and the server frees what they held in the background.
-- ARGV: time, record, id, version, lineage, plan, how the rollout stands, what is wanted of workers, by what batches are added,
-- version and lineage that it was made from, and what it relies on: 'settled', or 'batches' and their checksum.

if not version then return { 'NO_ROLLOUT' } end
if version ~= ARGV[10] or lineage ~= ARGV[11] then return { 'SUPERSEDED' } end
if ARGV[12] == 'settled' and redis.call('ZCARD', OPEN) > 0 then
  return { 'REGRESSED', 'some devices are not settled' }
elseif ARGV[12] == 'batches' then
  local held = checksum()
  if held[1] ~= ARGV[13] or held[2] ~= ARGV[14] or held[3] ~= ARGV[15] then
    return { 'REGRESSED', held[2] .. ' devices in ' .. held[1] .. ' batches are stored, of '
      .. ARGV[14] .. ' in ' .. ARGV[13] }
  end
  redis.call('HSETNX', HEAD, 'whole_at', whole(clock()))
end
if plan ~= ARGV[6] then redis.call('UNLINK', unpack(KEYS)) end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'id', ARGV[3], 'version', ARGV[4], 'lineage', ARGV[5], 'plan', ARGV[6], 'stance', ARGV[7],
  'wanted', ARGV[8], 'adding', ARGV[9])
return { 'OK' }
