-- Returns the batches counted by the budgets of groups.
-- ARGV: time, and the groups' names. Returns the time, and for each group: the number of devices,
-- and the numbers and rows of the batches counted by the group's budget.

if not version then return { 'NO_ROLLOUT' } end
local answer = { 'OK', clock() }
for at = 2, #ARGV do
  local group = ARGV[at]
  local names = redis.call('ZRANGEBYLEX', COUNTED, '[' .. group .. '\0', '(' .. group .. '\1')
  local numbers = {}
  for each, name in ipairs(names) do numbers[each] = whole(tonumber(string.sub(name, -10))) end
  answer[#answer + 1] = redis.call('HGET', GROUPS, group) or 0
  answer[#answer + 1] = numbers
  answer[#answer + 1] = fields(HEAD, numbers)
end
return answer
