-- Returns the state of a hub's limiter: `HubPermits::state`. Writes nothing.
-- KEYS: permits of the hub. ARGV: time. Returns the fraction of the quota in use, the microseconds
-- of permits reserved ahead, and the rollouts requesting permits.

local now = clock()
local limiter, shares = read_hub()
local asking = {}
for name, share in pairs(shares) do
  if share.asking_until > now then asking[#asking + 1] = name end
end
return { 'OK', exact(factor_at(limiter, now)), math.max(limiter.next_us - now * 1000, 0), asking }
