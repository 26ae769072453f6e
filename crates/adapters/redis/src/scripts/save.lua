-- Replaces a rollout's record. A change of the plan removes the whole old plan: a plan of any size
-- has few keys, and the server frees their memory in the background.
-- ARGV: time, record, id, version, lineage, plan, control, directive for workers, permission for
-- adding batches, notes, remembered commands ('': unchanged), version and lineage of the base
-- record, and the condition: 'settled', or 'batches' with the checksum.

if not version then return { 'NO_ROLLOUT' } end
if version ~= ARGV[12] or lineage ~= ARGV[13] then return { 'SUPERSEDED' } end
if ARGV[14] == 'settled' and redis.call('ZCARD', OPEN) > 0 then
  return { 'REGRESSED', 'some devices are not settled' }
elseif ARGV[14] == 'batches' then
  local held = checksum()
  if held[1] ~= ARGV[15] or held[2] ~= ARGV[16] or held[3] ~= ARGV[17] then
    return { 'REGRESSED', held[2] .. ' devices in ' .. held[1] .. ' batches are stored, of '
      .. ARGV[16] .. ' in ' .. ARGV[15] }
  end
  redis.call('HSETNX', HEAD, 'plan_completed_at', whole(clock()))
end
local commands = ARGV[11]
if plan ~= ARGV[6] then
  if commands == '' then commands = redis.call('HGET', HEAD, 'commands') or '' end
  redis.call('UNLINK', unpack(KEYS))
end
redis.call('HSET', HEAD, 'format', FORMAT,
  'record', ARGV[2], 'id', ARGV[3], 'version', ARGV[4], 'lineage', ARGV[5], 'plan', ARGV[6],
  'control', ARGV[7], 'directive', ARGV[8], 'adding', ARGV[9], 'notes', ARGV[10])
if commands ~= '' then redis.call('HSET', HEAD, 'commands', commands) end
return { 'OK' }
