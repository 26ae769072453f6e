-- A batch as it is now.
-- ARGV: time, batch, and 'whole' if its manifest is wanted. Gives the time, how the rollout stands, when its plan was whole,
-- the stamp of the last batch that budgets began to count, the header, the row, the state, and the manifest.

local format, stance, whole_at, begun, row =
  unpack(redis.call('HMGET', HEAD, 'format', 'stance', 'whole_at', 'begun', ARGV[2]))
if is_newer(format) then return { 'NEWER', tonumber(format) } end
if not stance then return { 'NO_ROLLOUT' } end
if not row then return { 'NO_BATCH' } end
local manifest = ARGV[3] == 'whole' and redis.call('HGET', MANIFESTS, ARGV[2])
return {
  'OK', clock(), stance, whole_at or 0, begun or 0,
  redis.call('HGET', HEADERS, ARGV[2]), row, redis.call('HGET', STATES, ARGV[2]) or '', manifest or '',
}
