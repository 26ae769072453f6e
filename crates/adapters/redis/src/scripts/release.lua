-- Gives a lease back: `Tenancy::release`. Does nothing if it no longer holds.
-- ARGV: time, batch, epoch.

local _, row = read_row(ARGV[2])
if row and row.epoch == ARGV[3] then
  row.holder, row.ends, row.strikes = NOBODY, 0, 0
  write_row(row)
end
return { 'OK' }
