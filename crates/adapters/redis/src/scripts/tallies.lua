-- A rollout's tallies, as they are stored.

if redis.call('EXISTS', HEAD) == 0 then return { 'NO_ROLLOUT' } end
return { 'OK', redis.call('HGETALL', TALLIES) }
