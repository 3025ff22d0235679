-- What time does: leases end, and workers that went silent are offline.
--
-- Answers the number of slots that came back since it last answered, here or where a slot was wanted.
-- A worker is announced once, when it goes offline; the announcement is a hint, whoever acts on it
-- looks for himself.

drop_expired()
local freed = tonumber(redis.call("GET", FREED) or 0)
redis.call("DEL", FREED)
for _, worker in ipairs(redis.call("SMEMBERS", WORKERS)) do
  local key = worker_key(worker)
  local status = redis.call("HGET", key, "status")
  if not status then
    redis.call("SREM", WORKERS, worker)
  elseif status ~= "offline" and not fresh(worker) then
    redis.call("HSET", key, "status", "offline")
    local sessions = redis.call("SMEMBERS", slots_key(worker))
    if #sessions == 0 then sessions = { "" } end
    for _, session in ipairs(sessions) do
      redis.call("PUBLISH", EVENTS, cjson.encode({
        type = "worker.offline", worker_id = worker, session_id = session ~= "" and session or nil }))
    end
  end
end
return freed
