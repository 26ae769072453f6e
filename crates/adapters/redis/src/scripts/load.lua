-- A batch with all that is known of its devices.
-- ARGV: time, batch. Gives the rollout's id, header, manifest, outcomes, index, code, index, … of refusals, and the newest
-- attempt.

if not stance then return { 'NO_ROLLOUT' } end
if not row then return { 'NO_BATCH' } end
local bytes = ''
if row.devices > 0 then bytes = packed(row, 0, row.devices - 1) end
if not bytes then return { 'DAMAGED', 'outcomes are missing' } end

local codes = {}
if row.counts[REFUSED] > 0 then
  local refused, names = {}, {}
  for index = 0, row.devices - 1 do
    if unpacked(string.byte(bytes, math.floor(index / 2) + 1), index) == REFUSED then
      refused[#refused + 1] = index
      names[#names + 1] = whole(row.first + index)
    end
  end
  for at, code in ipairs(fields(CODES, names)) do
    if code then
      codes[#codes + 1] = refused[at]
      codes[#codes + 1] = tonumber(code)
    end
  end
end
local header = redis.call('HGET', HEADERS, ARGV[2])
local manifest = redis.call('HGET', MANIFESTS, ARGV[2])
return { 'OK', redis.call('HGET', HEAD, 'id'), header, manifest, bytes, codes, row.newest }
