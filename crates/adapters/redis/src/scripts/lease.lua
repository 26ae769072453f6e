-- Gives a lease, or says why not: `Tenancy::lease`, and `budget` for what its groups have room for.
-- ARGV: time, batch, holder, milliseconds, and the milliseconds after which a write is durable.

if not stance then return { 'NO_ROLLOUT' } end
if not row then return { 'NO_BATCH' } end
if unsettled(row) == 0 then return { 'OK', 'done' } end
local stage, whole_at = unpack(redis.call('HMGET', HEAD, 'stage', 'whole_at'))
if stance ~= RUNNING or tonumber(row.stage) > tonumber(stage) then return { 'OK', 'not_wanted' } end

local now, holder = clock(), ARGV[3]
if not is_durable(row, whole_at, now, tonumber(ARGV[5])) then return { 'OK', 'not_wanted' } end
local budgets, over = {}, {}
if row.begun == '0' then
  budgets = cjson.decode(redis.call('HGET', HEADERS, ARGV[2])).budgets
  for _, budget in ipairs(budgets) do
    local devices = tonumber(redis.call('HGET', GROUPS, budget.group) or 0)
    local limit = budget.limit.devices or math.floor(devices * budget.limit.millionths / 1000000)
    local sum, names = group_in_progress(budget.group, budget.silent_ms, now)
    if sum + unsettled(row) > math.max(limit, 1) then return { 'OK', 'not_wanted' } end
    for _, name in ipairs(names) do over[#over + 1] = name end
  end
end
local is_others = row.holder ~= NOBODY and row.holder ~= holder
if is_others and row.ends > now then return { 'OK', 'held', row.holder, row.ends } end

if version ~= row.counted_in then
  row.counted_in, row.strikes = version, 0
elseif is_others then
  row.strikes = row.strikes + 1
end
if row.strikes >= MAX_STRIKES then
  row.holder, row.ends = NOBODY, 0
  write_row(row)
  return { 'OK', 'quarantined' }
end
in_pieces('ZREM', BEGUN, over)
for _, budget in ipairs(budgets) do
  redis.call('ZADD', BEGUN, 0, begun_name(budget.group, ARGV[2]))
  row.begun = '1'
end
-- Higher than all that were given before a crash, which the server may have lost.
row.epoch = whole(max(tonumber(redis.call('HGET', HEAD, 'epoch')) + 1, now))
redis.call('HSET', HEAD, 'epoch', row.epoch)
row.holder, row.ends = holder, later(now, tonumber(ARGV[4]))
write_row(row)
return { 'OK', 'granted', row.epoch }
