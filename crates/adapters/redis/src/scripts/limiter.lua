-- What a hub's limiter does now: `HubPermits::state`. Writes nothing.
-- KEYS: the hub's permits. ARGV: time. Gives what of the quota is used, microseconds that permits
-- are reserved ahead, and the rollouts that want some.

local now = clock()
local limiter, shares = read_hub()
local asking = {}
for name, share in pairs(shares) do
  if share.asking_until > now then asking[#asking + 1] = name end
end
return { 'OK', exact(factor_at(limiter, now)), math.max(limiter.next_us - now * 1000, 0), asking }
