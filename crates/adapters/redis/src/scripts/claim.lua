-- Takes or renews claims of rollouts. Returns the rollouts claimed by others, each with the holder
-- and the expiry.
-- KEYS: claims. ARGV: time, holder, milliseconds, names.

local now = clock()
local claim = whole(later(now, tonumber(ARGV[3]))) .. ' ' .. ARGV[2]
local names = {}
for at = 4, #ARGV do names[#names + 1] = ARGV[at] end
local found = fields(KEYS[1], names)
local answer, taken = { 'OK' }, {}
for at, name in ipairs(names) do
  local ends, holder = string.match(found[at] or '', '^(%d+) (.+)$')
  if holder and holder ~= ARGV[2] and tonumber(ends) > now then
    for _, word in ipairs({ name, holder, tonumber(ends) }) do answer[#answer + 1] = word end
  else
    taken[#taken + 1] = name
    taken[#taken + 1] = claim
  end
end
in_pieces('HSET', KEYS[1], taken)
return answer
