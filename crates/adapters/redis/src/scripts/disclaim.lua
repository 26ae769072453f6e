-- Gives a claim back; does nothing if it is another one's.
-- KEYS: the claims. ARGV: time, name, holder.

local claim = redis.call('HGET', KEYS[1], ARGV[2])
if claim and string.match(claim, '^%d+ (.+)$') == ARGV[3] then redis.call('HDEL', KEYS[1], ARGV[2]) end
return { 'OK' }
