-- Merges reports from others than the batch's holder.
-- ARGV: time, batch, the rollout's id, attempt that they are about, reports.

if not stance or redis.call('HGET', HEAD, 'id') ~= ARGV[3] then return { 'NO_ROLLOUT' } end
if not row then return { 'NO_BATCH' } end
local change, refusal = merged(row, tonumber(ARGV[4]), decode(ARGV[5]))
if refusal then return refusal end
apply(row, change)
if #change.places > 0 then write_row(row) end
return { 'OK' }
