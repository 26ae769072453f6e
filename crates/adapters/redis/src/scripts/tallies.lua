-- A rollout's tallies, as they are stored.

if not version then return { 'NO_ROLLOUT' } end
return { 'OK', redis.call('HGETALL', TALLIES) }
