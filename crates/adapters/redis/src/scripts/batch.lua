-- A batch as it is now.
-- ARGV: time, batch, and 'whole' if its manifest is wanted. Gives the batch as `told`.

local format, stance, whole_at, begun, row =
  unpack(redis.call('HMGET', HEAD, 'format', 'stance', 'whole_at', 'begun', ARGV[2]))
if is_newer(format) then return { 'NEWER', tonumber(format) } end
if not stance then return { 'NO_ROLLOUT' } end
if not row then return { 'NO_BATCH' } end
return { 'OK', told(ARGV[2], stance, whole_at, begun, row, ARGV[3] == 'whole') }
