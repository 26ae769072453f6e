-- How many devices groups have, and how many of them are in progress.
-- ARGV: time, and for each group: name, milliseconds of silence. Gives devices and in progress, for each.

if not version then return { 'NO_ROLLOUT' } end
local now = clock()
local answer = { 'OK' }
for at = 2, #ARGV, 2 do
  answer[#answer + 1] = tonumber(redis.call('HGET', GROUPS, ARGV[at]) or 0)
  answer[#answer + 1] = (group_in_progress(ARGV[at], tonumber(ARGV[at + 1]), now))
end
return answer
