-- Take a slot of the least loaded worker for a session.
--
-- ARGV: session, lease seconds, variant, worker to avoid (or ""), then field, value, ... of the
-- session's record. Answers {worker, endpoint, epoch}, or {reason} when there is no slot:
-- "no_workers" none is alive, "draining" all that live are going, "full" every slot is taken.
--
-- A session that holds a slot already is taken over: the slot passes to the new worker and the
-- epoch goes up, after which nothing the old owner says counts.

local session, lease, variant, avoid = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

drop_expired()

local reason = "no_workers"
local best, best_load, best_serves
for _, worker in ipairs(redis.call("SMEMBERS", WORKERS)) do
  local record = redis.call("HMGET", worker_key(worker), "status", "capacity", "models")
  local status, capacity = record[1], tonumber(record[2]) or 0
  if status and fresh(worker) then
    if status == "draining" then
      if reason == "no_workers" then reason = "draining" end
    elseif status ~= "offline" then
      local active = redis.call("SCARD", slots_key(worker))
      if redis.call("SISMEMBER", slots_key(worker), session) == 1 then active = active - 1 end
      if active >= capacity then
        reason = "full"
      elseif worker ~= avoid then
        -- A worker that has the variant goes before any that has to fall back to another.
        local serves = string.find(record[3] or "", '"' .. variant .. '"', 1, true) ~= nil
        local load = active / capacity
        if not best or (serves and not best_serves)
            or (serves == best_serves and (load < best_load or (load == best_load and worker < best))) then
          best, best_load, best_serves = worker, load, serves
        end
      end
    end
  end
end
if not best then return { reason } end

local key = session_key(session)
local before = redis.call("HGET", key, "worker_id")
if before then
  redis.call("SREM", slots_key(before), session)
  recount(before)
end
local epoch = redis.call("HINCRBY", key, "epoch", 1)
redis.call("HSET", key, "worker_id", best, "status", "active", unpack(ARGV, 5))
if redis.call("HEXISTS", key, "started_at") == 0 then
  redis.call("HSET", key, "started_at", iso(now))
end
take(session, best, lease)
return { best, redis.call("HGET", worker_key(best), "endpoint"), epoch }
