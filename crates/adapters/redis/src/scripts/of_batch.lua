-- What scripts on one batch begin with; ARGV[2] is its number. All is read at once. Without a stance there is no such
-- rollout, without a row no such batch.

local format, stance, version, text =
  unpack(redis.call('HMGET', HEAD, 'format', 'stance', 'version', ARGV[2]))
if is_newer(format) then return { 'NEWER', tonumber(format) } end
local row = text and row_of(ARGV[2], text)
