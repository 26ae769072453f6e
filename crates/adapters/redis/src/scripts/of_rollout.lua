-- What scripts on a whole rollout begin with: without a version there is no such rollout.

local format, version, lineage, plan, adding =
  unpack(redis.call('HMGET', HEAD, 'format', 'version', 'lineage', 'plan', 'adding'))
if is_newer(format) then return { 'NEWER', tonumber(format) } end
