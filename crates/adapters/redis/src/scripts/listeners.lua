-- The listeners to a hub's feedback. Writes nothing.
-- KEYS: the hub's listeners. ARGV: time. Gives the time, and of each listener its name and its report.

return { 'OK', whole(clock()), redis.call('HGETALL', KEYS[1]) }
