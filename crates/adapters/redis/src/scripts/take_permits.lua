-- Reserves permits of a hub: `HubPermits::take`.
-- KEYS: permits of the hub. ARGV: time, rollout, requested permits, pace per minute, weight, the
-- rollout's own limit per minute (or empty), and the milliseconds after which a write is durable.
-- Returns the permits, and the microseconds to wait.

local now = clock()
local now_us = now * 1000
local rollout, wanted, per_minute = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local weight, limit = tonumber(ARGV[5]), tonumber(ARGV[6])
local limiter, shares = read_hub()
-- `HubPermits::skip`: a new run of the server may have lost the last writes of the previous run.
local durable_after, run = tonumber(ARGV[7]), nil
if durable_after > 0 then
  run = server_run()
  local before = run and redis.call('HGET', KEYS[1], 'run')
  if before and before ~= run then
    limiter.next_us = math.max(limiter.next_us, now_us) + durable_after * 1000
  end
end

-- Permits unused before this time are lost.
local earliest_us = math.max(now_us - MAKE_UP_US, 0)
local least
local forgotten = {}
for name, share in pairs(shares) do
  if name ~= rollout then
    if share.asking_until > now then
      least = math.min(least or share.used, share.used)
    elseif share.next_us <= earliest_us then
      forgotten[#forgotten + 1] = 'share:' .. name
    end
  end
end

local share = shares[rollout] or { used = 0, asking_until = 0, next_us = 0 }
if share.asking_until <= now then share.used = least and math.max(share.used, least) or 0 end

local function answer(permits, wait_us)
  local stored = table.concat(
    { exact(share.used), exact(share.asking_until), exact(share.next_us) }, ' ')
  if run then
    write_limiter(limiter, 'share:' .. rollout, stored, 'run', run)
  else
    write_limiter(limiter, 'share:' .. rollout, stored)
  end
  in_pieces('HDEL', KEYS[1], forgotten)
  return { 'OK', permits, wait_us }
end

local allowed, start_us = wanted, math.max(share.next_us, earliest_us)
if limit then
  if share.next_us > now_us then
    share.asking_until = now
    return answer(0, share.next_us - now_us)
  end
  local room_us = now_us - start_us + BLOCK_US
  allowed = math.min(allowed, math.max(math.floor(room_us * limit / 60e6), 1))
end

local permits, wait_us = 0, nil
local line_us = math.max(limiter.next_us, now_us)
local ahead_us = line_us - now_us
if least and share.used > least and ahead_us > DRY_BELOW_US then
  wait_us = ahead_us - DRY_BELOW_US
elseif ahead_us > HORIZON_US then
  wait_us = ahead_us - HORIZON_US
else
  local interval_us = 60e6 / (per_minute * factor_at(limiter, now))
  permits = math.min(allowed, math.max(math.floor(BLOCK_US / interval_us), 1))
  wait_us = ahead_us
  limiter.next_us = line_us + math.floor(permits * interval_us)
end

share.used = share.used + permits / math.max(weight, 1)
local is_content = false
if limit and permits > 0 then
  share.next_us = start_us + math.floor(permits * 60e6 / limit)
  is_content = permits == allowed and allowed < wanted
end
if is_content then
  share.asking_until = now
else
  local back = later(now, math.floor(wait_us / 1000) + BLOCK_US / 1000 + TURN_GRACE_US / 1000)
  share.asking_until = math.max(share.asking_until, back)
end
return answer(permits, wait_us)
