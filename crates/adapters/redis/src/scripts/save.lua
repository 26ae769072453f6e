-- Replaces a rollout's record. With another plan, all of the old one is gone: its keys are few
-- however large it was, and the server frees what they held in the background. Epochs go on, so
-- that no plan's lease is ever mistaken for another plan's.
-- ARGV: time, record, id, version, lineage, plan, stance, stage, attempt, by what batches are added, version and lineage that it
-- was made from, and what it relies on: 'settled', or 'batches' and their checksum.

if not version then return { 'NO_ROLLOUT' } end
if version ~= ARGV[11] or lineage ~= ARGV[12] then return { 'SUPERSEDED' } end
if ARGV[13] == 'settled' and redis.call('ZCARD', OPEN) > 0 then
  return { 'REGRESSED', 'some devices are not settled' }
elseif ARGV[13] == 'batches' then
  local held = checksum()
  if held[1] ~= ARGV[14] or held[2] ~= ARGV[15] or held[3] ~= ARGV[16] then
    return { 'REGRESSED', held[2] .. ' devices in ' .. held[1] .. ' batches are stored, of '
      .. ARGV[15] .. ' in ' .. ARGV[14] }
  end
  redis.call('HSETNX', HEAD, 'whole_at', whole(clock()))
end
if plan ~= ARGV[6] then redis.call('UNLINK', unpack(KEYS)) end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'id', ARGV[3], 'version', ARGV[4], 'lineage', ARGV[5], 'plan', ARGV[6], 'stance', ARGV[7],
  'stage', ARGV[8], 'attempt', ARGV[9], 'adding', ARGV[10], 'epoch', epoch)
return { 'OK' }
