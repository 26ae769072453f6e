-- Makes devices of a batch pending for a new attempt, unless somebody holds it: `Attempts::reopen`,
-- `Tenancy::vacate`. Once for each attempt.
-- ARGV: time, batch, attempt, and the outcomes that are chosen. Gives how many devices it was, or -1 with
-- the holder and the lease's end.

if not stance then return { 'NO_ROLLOUT' } end
if stance ~= PREPARING or redis.call('HGET', HEAD, 'attempt') ~= ARGV[3] then
  return { 'SUPERSEDED' }
end
if not row then return { 'NO_BATCH' } end
local attempt = tonumber(ARGV[3])
if row.newest >= attempt then return { 'OK', 0 } end
if row.holder ~= NOBODY and row.ends > clock() then return { 'OK', -1, row.holder, row.ends } end

local chosen, devices = {}, 0
for at = 4, #ARGV do
  local outcome = tonumber(ARGV[at])
  if not chosen[outcome] then devices = devices + row.counts[outcome] end
  chosen[outcome] = true
end
if devices == 0 then return { 'OK', 0 } end

local bytes, start = packed(row, 0, row.devices - 1)
if not bytes then return { 'DAMAGED', 'outcomes are missing' } end
local change = { places = {}, bytes = {}, moved = {}, codes = {}, old = bytes, start = start }
local names = {}
for index = 0, row.devices - 1 do
  local place = floor(index / 2) + 1
  local byte = change.bytes[place] or string.byte(bytes, place)
  local before = unpacked(byte, index)
  if chosen[before] then
    if not change.bytes[place] then change.places[#change.places + 1] = place end
    local unit = index % 2 == 0 and 1 or 16
    change.bytes[place] = byte + (PENDING - before) * unit
    change.moved[before] = (change.moved[before] or 0) - 1
    names[#names + 1] = whole(row.first + index)
  end
end
if #names ~= devices then return { 'DAMAGED', 'the counts are not the sum of the outcomes' } end
change.moved[PENDING] = devices
apply(row, change)
in_pieces('HDEL', CODES, names)
row.newest = attempt
if chosen[ENQUEUED] then row.silent = attempt end
row.holder, row.ends, row.strikes = NOBODY, 0, 0
write_row(row)
return { 'OK', devices }
