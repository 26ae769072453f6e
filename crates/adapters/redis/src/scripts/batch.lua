-- Returns the current state of a batch, in the form of `loaded`.
-- ARGV: time, batch, and 'whole' to include the manifest.

local format, control, plan_completed_at, budget_stamp, row = unpack(redis.call(
  'HMGET', HEAD, 'format', 'control', 'plan_completed_at', 'budget_stamp', ARGV[2]))
if is_newer(format) then return { 'NEWER', tonumber(format) } end
if not control then return { 'NO_ROLLOUT' } end
if not row then return { 'NO_BATCH' } end
return { 'OK', loaded(ARGV[2], control, plan_completed_at, budget_stamp, row, ARGV[3] == 'whole') }
