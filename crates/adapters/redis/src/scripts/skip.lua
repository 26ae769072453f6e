-- Settles devices of a batch that will not be sent to, unless somebody holds it: `Skip`.
-- ARGV: time, batch; and, for those that have left, by what batches are added, and the devices' positions, 4 bytes each.
-- Gives the holder and the lease's end, if somebody has it.

if not stance then return { 'NO_ROLLOUT' } end
local look = ARGV[3]
if look and redis.call('HGET', HEAD, 'adding') ~= look then return { 'SUPERSEDED' } end
if not look and stance ~= ABORTING then return { 'SUPERSEDED' } end
if not row then return { 'NO_BATCH' } end
if row.holder ~= NOBODY and row.ends > clock() then return { 'OK', row.holder, row.ends } end
if unsettled(row) == 0 then return { 'OK' } end

local has_left = {}
for at = 1, look and #ARGV[4] or 0, 4 do has_left[struct.unpack('<I4', ARGV[4], at)] = true end
local ends = look and { [PENDING] = SKIPPED } or { [PENDING] = SKIPPED, [ATTEMPTING] = UNKNOWN }
local bytes = packed(row, 0, row.devices - 1)
if not bytes then return { 'DAMAGED', 'outcomes are missing' } end
local reports = {}
for index = 0, row.devices - 1 do
  local outcome = ends[unpacked(string.byte(bytes, floor(index / 2) + 1), index)]
  if outcome and (not look or has_left[index]) then
    local n = #reports
    reports[n + 1], reports[n + 2], reports[n + 3] = index, outcome, 0
  end
end
local change, refusal = merged(row, row.newest, reports)
if refusal then return refusal end
apply(row, change)
write_row(row)
return { 'OK' }
