-- Merges a holder's reports and renews its lease: `Tenancy::renew`. A lease that lapsed but was
-- taken by nobody still holds.
-- ARGV: time, batch, holder, epoch, milliseconds, reports. Gives the rollout's stance.

if not row or not is_held_by(row, ARGV[3], ARGV[4]) then return { 'SUPERSEDED' } end

local reports = decode(ARGV[6])
local change, refusal = merged(row, row.newest, reports)
if refusal then return refusal end
local now = clock()
row.ends = later(now, tonumber(ARGV[5]))
if #reports > 0 then
  row.strikes = 0
  if row.begun ~= '-' then row.sent_at = now end
end
apply(row, change)
write_row(row)
return { 'OK', stance }
