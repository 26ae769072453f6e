-- Releases a claim; does nothing for a claim of another holder.
-- KEYS: claims. ARGV: time, name, holder.

local claim = redis.call('HGET', KEYS[1], ARGV[2])
if claim and string.match(claim, '^%d+ (.+)$') == ARGV[3] then
  redis.call('HDEL', KEYS[1], ARGV[2])
end
return { 'OK' }
