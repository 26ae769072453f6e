-- Records a send refused by a hub because of the quota: `SendLimiter::throttled`.
-- KEYS: permits of the hub. ARGV: time, milliseconds without sends.

local now = clock()
local limiter = read_hub()
if now - limiter.factor_at >= ONE_THROTTLE_MS or limiter.factor >= 1 then
  limiter.factor = math.max(factor_at(limiter, now) * CUT, FLOOR)
  limiter.factor_at = now
end
limiter.next_us = math.max(limiter.next_us, later(now, tonumber(ARGV[2])) * 1000)
write_limiter(limiter)
return { 'OK' }
