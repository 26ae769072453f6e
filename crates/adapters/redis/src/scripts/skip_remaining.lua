-- Settles what is left of a batch of a rollout that is being aborted, unless somebody holds it.
-- ARGV: time, batch. Gives the holder and the lease's end, if so.

local stance, row = read_row(ARGV[2])
if not stance then return { 'NO_ROLLOUT' } end
if stance ~= ABORTING then return { 'SUPERSEDED' } end
if not row then return { 'NO_BATCH' } end
if row.holder ~= NOBODY and row.ends > clock() then return { 'OK', row.holder, row.ends } end
if unsettled(row) == 0 then return { 'OK' } end

local bytes = packed(row, 0, row.devices - 1)
if not bytes then return { 'DAMAGED', 'outcomes are missing' } end
local ends = { [PENDING] = SKIPPED, [ATTEMPTING] = UNKNOWN }
local reports = {}
for index = 0, row.devices - 1 do
  local outcome = ends[unpacked(string.byte(bytes, math.floor(index / 2) + 1), index)]
  if outcome then
    local n = #reports
    reports[n + 1], reports[n + 2], reports[n + 3] = index, outcome, 0
  end
end
local change, refusal = merged(row, row.newest, reports)
if refusal then return refusal end
apply(row, change)
write_row(row)
return { 'OK' }
