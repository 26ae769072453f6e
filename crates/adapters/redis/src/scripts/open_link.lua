-- Reserves the opening of a link to a hub: `Links::open`.
-- KEYS: links of the hub. ARGV: time. Returns the milliseconds to wait.

local now = clock()
local start = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
redis.call('SET', KEYS[1], whole(later(start, LINK_MS)))
return { 'OK', math.max(start - now - LINK_MS * (LINK_BURST - 1), 0) }
