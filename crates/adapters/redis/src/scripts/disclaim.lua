-- Gives a claim back; does nothing if it is another one's.
-- KEYS: the rollout's roster. ARGV: time, holder.

if redis.call('HGET', KEYS[1], 'holder') == ARGV[2] then
  redis.call('HDEL', KEYS[1], 'holder', 'ends')
end
return { 'OK' }
