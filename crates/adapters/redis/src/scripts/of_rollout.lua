-- The common prefix of scripts for a rollout. Without a version, the rollout does not exist.

local format, version, lineage, plan, adding =
  unpack(redis.call('HMGET', HEAD, 'format', 'version', 'lineage', 'plan', 'adding'))
if is_newer(format) then return { 'NEWER', tonumber(format) } end
