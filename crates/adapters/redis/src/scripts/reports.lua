-- What processes report about a hub. Writes nothing.
-- KEYS: the reports on the hub. ARGV: time. Gives the time, and of each reporter its name and its report.

return { 'OK', whole(clock()), redis.call('HGETALL', KEYS[1]) }
