-- The common prefix of all scripts. ARGV[1] is the time in milliseconds since 1970; if empty, the
-- server's time is used.

local function clock(time)
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  time = time or redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Formats a whole number. Lua's own conversion is exact to 14 digits only.
local function whole(number)
  return string.format('%.0f', number)
end

-- Returns the time after `ttl` milliseconds, limited to the range of a Timestamp.
local function later(now, ttl)
  return math.min(now + ttl, LATEST)
end

-- Calls a command with any number of arguments after the key, a thousand at a time, because Lua's
-- stack is small. `call` receives each answer.
local function in_pieces(command, key, arguments, call)
  for first = 1, #arguments, 1000 do
    local last = math.min(first + 999, #arguments)
    local answer = redis.call(command, key, unpack(arguments, first, last))
    if call then call(answer) end
  end
end

-- Returns the values of a hash's fields, in order; false for missing fields.
local function fields(key, names)
  local values = {}
  in_pieces('HMGET', key, names, function(answer)
    for at = 1, #answer do values[#values + 1] = answer[at] end
  end)
  return values
end
