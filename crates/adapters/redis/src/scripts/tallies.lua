-- Returns a rollout's tallies, in stored form.

if not version then return { 'NO_ROLLOUT' } end
return { 'OK', redis.call('HGETALL', TALLIES) }
