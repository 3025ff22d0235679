-- A worker is alive: write its whole record, the indexes included, and put its sessions back.
--
-- ARGV: worker, instance, lease seconds, number of sessions, then session, epoch, ..., then field,
-- value, ... Answers "ok", or "taken" when another living process uses this worker id.
--
-- Every heartbeat does all of it, so that a Redis that lost its data is whole again with the next.
-- The record never says how many sessions there are: that is counted here. Sessions of an older
-- epoch than the recorded one were taken over by another worker, and are not put back.

local worker, instance, lease, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local key = worker_key(worker)

local other = redis.call("HGET", key, "instance")
if other and other ~= instance and fresh(worker) and redis.call("HGET", key, "status") ~= "offline" then
  return "taken"
end

local first_field = 5 + 2 * count
redis.call("HSET", key, "instance", instance, "heartbeat_at", now, "last_heartbeat", iso(now),
  unpack(ARGV, first_field))
redis.call("HSETNX", key, "started_at", iso(now))
redis.call("EXPIRE", key, RECORD_TTL)
redis.call("SADD", WORKERS, worker)
for i = 5, first_field - 1, 2 do
  local session, epoch = ARGV[i], tonumber(ARGV[i + 1])
  local known = redis.call("HMGET", session_key(session), "epoch", "status")
  if not known[1] then
    redis.call("HSET", session_key(session), "worker_id", worker, "epoch", epoch, "status", "active",
      "started_at", iso(now))
    take(session, worker, lease)
  end
end
recount(worker)
return "ok"
