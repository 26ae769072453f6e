-- What the scripts on one rollout share. Each reads and checks first and writes last, so that
-- what is refused (by us, or by a server that is out of memory, which it tells at the first
-- write) has changed nothing.

local HEAD, NUMBERS, HEADERS, MANIFESTS, OUTCOMES, CODES, OPEN, TALLIES, GROUPS, BEGUN = unpack(KEYS)

-- Called for each device.
local floor, min, max = math.floor, math.min, math.max

-- The holder of a batch that nobody holds; no holder has such a name.
local NOBODY = '-'

-- A batch's row in HEAD: all that changes about it, and what is needed for changing it. Its
-- words: first device, devices, stage, hub, epoch, strikes, version they were counted in,
-- lease's end, holder, how many devices have each outcome, after a dot its place, and its part in budgets: whether it is
-- begun ('-' if it has no budgets), and when something of it was last recorded as sent; when it was added;
-- and, of a batch that was retried, its newest attempt and the newest at silent devices.
local function row_of(batch, text)
  local word = string.gmatch(text, '%S+')
  local row = {
    batch = batch,
    first = tonumber(word()), devices = tonumber(word()), stage = word(), hub = word(),
    epoch = word(), strikes = tonumber(word()), counted_in = word(),
    ends = tonumber(word()), holder = word(), counts = {},
  }
  for outcome = 0, OUTCOME_COUNT - 1 do row.counts[outcome] = tonumber(word()) end
  row.place, row.begun, row.sent_at, row.added_at = word(), word(), tonumber(word()), tonumber(word())
  row.newest, row.silent = tonumber(word() or 1), tonumber(word() or 1)
  return row
end

local function write_row(row)
  local words = {
    whole(row.first), whole(row.devices), row.stage, row.hub,
    row.epoch, whole(row.strikes), row.counted_in,
    whole(row.ends), row.holder,
  }
  for outcome = 0, OUTCOME_COUNT - 1 do words[#words + 1] = whole(row.counts[outcome]) end
  words[#words + 1] = row.place
  words[#words + 1] = row.begun
  words[#words + 1] = whole(row.sent_at)
  words[#words + 1] = whole(row.added_at)
  if row.newest > 1 then
    words[#words + 1] = whole(row.newest)
    words[#words + 1] = whole(row.silent)
  end
  redis.call('HSET', HEAD, row.batch, table.concat(words, ' '))
end

-- Whether a lease is the newest and was not given back.
local function is_held_by(row, holder, epoch)
  return row.holder == holder and row.epoch == epoch
end

local function unsettled(row)
  local sum = 0
  for _, outcome in ipairs(UNSETTLED) do sum = sum + row.counts[outcome] end
  return sum
end

-- The tally of an outcome. That of the pending ones is of all devices, whatever became of them:
-- one write less for most records.
local function tally(row, outcome)
  return row.stage .. ':' .. row.hub .. ':' .. outcome
end

-- A batch's name in OPEN, where all have the same score and so are in the order of their names:
-- by hub, then by stage, then by place, then by number. A place has digits only, which are above the dash: so a shorter
-- place is before one that begins with it.
local function open_name(row)
  local stage, batch = tonumber(row.stage), tonumber(row.batch)
  return row.hub .. string.format(':%05.0f:%s-%010.0f', stage, string.sub(row.place, 2), batch)
end

-- The outcomes of the devices `from` to `to` of a batch, two to a byte, the earlier one in the
-- low half. A batch begins at a byte. False when they are not all there.
local function packed(row, from, to)
  local start = row.first / 2
  local low, high = start + floor(from / 2), start + floor(to / 2)
  local bytes = redis.call('GETRANGE', OUTCOMES, whole(low), whole(high))
  return #bytes == high - low + 1 and bytes, low
end

local function unpacked(byte, index)
  if index % 2 == 0 then return byte % 16 end
  return floor(byte / 16)
end

-- Reports as they are sent, 9 bytes each, made a list of index, outcome, code, index, …
local function decode(text)
  local reports = {}
  for at = 1, #text, 9 do
    local n = #reports
    reports[n + 1], reports[n + 2], reports[n + 3] = struct.unpack('<I4BI4', text, at)
  end
  return reports
end

-- Whether a report on a message of this attempt is to be merged: `Attempts::admits`.
local function admits(row, attempt, known, report)
  return attempt >= row.newest or report >= DELIVERED
    or (attempt >= row.silent and known >= ENQUEUED)
end

-- What reports on messages of an attempt would change of a batch, without changing it; or nil and a
-- refusal.
local function merged(row, attempt, reports)
  local from, to = row.devices, -1
  for at = 1, #reports, 3 do
    from, to = min(from, reports[at]), max(to, reports[at])
  end
  local change = { places = {}, bytes = {}, moved = {}, codes = {} }
  if to < 0 then return change end
  if to >= row.devices then return nil, { 'NO_DEVICE', to } end
  local bytes, start = packed(row, from, to)
  if not bytes then return nil, { 'DAMAGED', 'outcomes are missing' } end

  change.old, change.start = bytes, start
  local base = floor(from / 2)
  for at = 1, #reports, 3 do
    local index, outcome, code = reports[at], reports[at + 1], reports[at + 2]
    local place = floor(index / 2) - base + 1
    local byte = change.bytes[place] or string.byte(bytes, place)
    local before = unpacked(byte, index)
    local admitted = admits(row, attempt, before, outcome)
    local after = admitted and max(before, outcome) or before
    if after ~= before then
      if not change.bytes[place] then change.places[#change.places + 1] = place end
      local unit = index % 2 == 0 and 1 or 16
      change.bytes[place] = byte + (after - before) * unit
      change.moved[before] = (change.moved[before] or 0) - 1
      change.moved[after] = (change.moved[after] or 0) + 1
    end
    if admitted and after == REFUSED and outcome == REFUSED and code ~= 0 then
      change.codes[#change.codes + 1] = { whole(row.first + index), code }
    end
  end
  for outcome, by in pairs(change.moved) do
    if row.counts[outcome] + by < 0 then
      return nil, { 'DAMAGED', 'the counts are not the sum of the outcomes' }
    end
  end
  return change
end

-- The codes of a change that are the first for their device, as fields and values.
local function first_codes(change)
  local names, codes = {}, {}
  for _, entry in ipairs(change.codes) do
    if not codes[entry[1]] then
      names[#names + 1] = entry[1]
      codes[entry[1]] = entry[2]
    end
  end
  local found = fields(CODES, names)
  local new = {}
  for at, name in ipairs(names) do
    if not found[at] then
      new[#new + 1] = name
      new[#new + 1] = codes[name]
    end
  end
  return new
end

-- Carries out a change, with all that follows from it. The row itself is for the caller to write.
local function apply(row, change)
  local codes = first_codes(change)
  local places = change.places
  if #places > 0 then
    table.sort(places)
    local pieces, from = {}, places[1]
    for _, place in ipairs(places) do
      pieces[#pieces + 1] = string.sub(change.old, from, place - 1)
      pieces[#pieces + 1] = string.char(change.bytes[place])
      from = place + 1
    end
    local offset = whole(change.start + places[1] - 1)
    redis.call('SETRANGE', OUTCOMES, offset, table.concat(pieces))
    for outcome, by in pairs(change.moved) do
      row.counts[outcome] = row.counts[outcome] + by
      if by ~= 0 and outcome ~= PENDING then
        redis.call('HINCRBY', TALLIES, tally(row, outcome), by)
      end
    end
    if unsettled(row) == 0 then
      redis.call('ZREM', OPEN, open_name(row))
      if row.begun == '1' then row.begun = '0' end
    elseif (change.moved[PENDING] or 0) > 0 then
      redis.call('ZADD', OPEN, 0, open_name(row))
    end
  end
  in_pieces('HSET', CODES, codes)
end

-- How many of a batch's devices are in progress: `Begun::in_progress`.
local function in_progress(row, silent_ms, now)
  local unsent = row.begun == '1' and unsettled(row) or 0
  if now >= later(row.sent_at, silent_ms) then return unsent end
  return unsent + row.counts[ENQUEUED]
end

-- A batch's name in BEGUN, for one of its groups.
local function begun_name(group, batch)
  return group .. '\0' .. string.format('%010.0f', tonumber(batch))
end

-- How many devices of a group are in progress, and the names in BEGUN of batches that have none any more.
local function group_in_progress(group, silent_ms, now)
  local names = redis.call('ZRANGEBYLEX', BEGUN, '[' .. group .. '\0', '(' .. group .. '\1')
  local sum, over = 0, {}
  for _, name in ipairs(names) do
    local batch = whole(tonumber(string.sub(name, -10)))
    local row = row_of(batch, redis.call('HGET', HEAD, batch))
    local devices = in_progress(row, silent_ms, now)
    sum = sum + devices
    if devices == 0 then over[#over + 1] = name end
  end
  return sum, over
end

-- The headers and rows of batches, for those who want to see them.
local function page(version, numbers)
  return { 'OK', version, clock(), fields(HEADERS, numbers), fields(HEAD, numbers) }
end

-- The checksum of all batches: how many, of how many devices, and the sum of their fingerprints. `Checksum`.
local function checksum()
  local held = redis.call('HMGET', HEAD, 'batches', 'devices', 'sum')
  return { held[1] or '0', held[2] or '0', held[3] or '0' }
end

-- Whether neither a batch nor its plan can be lost in a crash any more. Writes are durable after so many milliseconds.
local function is_durable(row, whole_at, now, durable_after)
  return now >= later(max(row.added_at, tonumber(whole_at or 0)), durable_after)
end

-- What a newer release has written is left alone, by every script.
local function is_newer(format)
  return tonumber(format or FORMAT) > FORMAT
end
