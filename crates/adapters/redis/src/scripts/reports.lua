-- Returns the reports of processes about a hub. Writes nothing.
-- KEYS: reports about the hub. ARGV: time. Returns the time, and the name and report of each
-- reporter.

return { 'OK', whole(clock()), redis.call('HGETALL', KEYS[1]) }
