-- Gives a lease back: `Tenancy::release`. Does nothing if another one has the batch. A word from
-- the last holder acquits a batch that was taken from it because of its strikes, too.
-- ARGV: time, batch, holder, epoch.

if row and (is_held_by(row, ARGV[3], ARGV[4]) or is_held_by(row, NOBODY, ARGV[4])) then
  row.holder, row.ends, row.strikes = NOBODY, 0, 0
  write_row(row)
end
return { 'OK' }
