-- Returns the active rollouts with their newest versions, the claims, and the halt, if any.
-- KEYS: active rollouts, claims, halt. ARGV: time.

return { 'OK', clock(), redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'),
  redis.call('HGETALL', KEYS[2]), redis.call('GET', KEYS[3]) }
