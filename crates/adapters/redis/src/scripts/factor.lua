-- What of a hub's quota is used now: `Limiter::factor`. Writes nothing.
-- KEYS: the hub's permits. ARGV: time.

local factor, factor_at_ms = unpack(redis.call('HMGET', KEYS[1], 'factor', 'factor_at'))
local limiter = read_limiter({ factor = factor or nil, factor_at = factor_at_ms or nil })
return { 'OK', exact(factor_at(limiter, clock())) }
