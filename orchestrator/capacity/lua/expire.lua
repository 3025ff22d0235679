-- What time does: leases end, and workers that went silent are offline.
--
-- Answers the number of slots that came back since it last answered, here or where a slot was wanted.
-- A worker is announced once, when it goes offline; the announcement is a hint, whoever acts on it
-- looks for himself.

drop_future()
drop_expired()
local freed = number(redis.call("GET", FREED)) or 0
redis.call("DEL", FREED)
local workers, taken, wrong = redis.call("SMEMBERS", WORKERS), 0, false
for _, worker in ipairs(workers) do
  local key = worker_key(worker)
  local status = redis.call("HGET", key, "status")
  local slots = redis.call("SCARD", slots_key(worker))
  taken, wrong = taken + slots, wrong or redis.call("SCARD", small_key(worker)) > slots
  if not status then
    redis.call("SREM", WORKERS, worker)
    redis.call("HDEL", TURNS, worker)
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

-- Every slot has a lease, and ends with it. One that has none came from elsewhere, or its lease did
-- not survive: it is given one if its session says that it is there, and taken away if not.
local function sweep(worker)
  for _, session in ipairs(redis.call("SMEMBERS", slots_key(worker))) do
    if not redis.call("ZSCORE", LEASES, session) then
      local record = redis.call("HMGET", session_key(session), "worker_id", "status")
      if record[1] == worker and record[2] == "active" then
        redis.call("ZADD", LEASES, now + LEASE, session)
      else
        leave_worker(session, worker)
      end
    end
  end
  redis.call("SINTERSTORE", small_key(worker), small_key(worker), slots_key(worker))
  recount(worker)
end

local leases = redis.call("ZCARD", LEASES)
if wrong or taken > leases or redis.call("SCARD", ACTIVE) > leases then
  for _, worker in ipairs(workers) do sweep(worker) end
  for _, session in ipairs(redis.call("SMEMBERS", ACTIVE)) do
    if not redis.call("ZSCORE", LEASES, session) then redis.call("SREM", ACTIVE, session) end
  end
end
return freed
