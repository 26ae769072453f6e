-- Merges a holder's reports and renews its lease: `Tenancy::renew`. A lease that lapsed but was
-- taken by nobody still holds.
-- ARGV: time, batch, epoch, milliseconds, reports. Gives the rollout's stance.

local stance, row = read_row(ARGV[2])
if not row or row.holder == NOBODY or row.epoch ~= ARGV[3] then return { 'SUPERSEDED' } end

local reports = decode(ARGV[5])
local change, refusal = merged(row, reports)
if refusal then return refusal end
row.ends = later(clock(), tonumber(ARGV[4]))
if #reports > 0 then row.strikes = 0 end
apply(row, change)
write_row(row)
return { 'OK', stance }
