-- A worker is alive: write its whole record, the indexes included, and put its sessions back.
--
-- ARGV: worker, instance, endpoint, lease seconds, number of sessions, then session, epoch, ..., then
-- field, value, ... Answers "ok", or "taken" when another living process uses this worker id. A
-- process at the same endpoint is no other: it was started again, and its predecessor is dead.
--
-- Every heartbeat does all of it, so that a Redis that lost its data is whole again with the next.
-- The record never says how many sessions there are: that is counted here. Sessions of an older
-- epoch than the recorded one were taken over by another worker, and are not put back.

local worker, instance, endpoint = ARGV[1], ARGV[2], ARGV[3]
local lease, served = tonumber(ARGV[4]), tonumber(ARGV[5])
local key = worker_key(worker)

local known = redis.call("HMGET", key, "instance", "endpoint", "status")
if known[1] and known[1] ~= instance and known[2] ~= endpoint
    and known[3] ~= "offline" and fresh(worker) then
  return "taken"
end

local first_field = 6 + 2 * served
redis.call("HSET", key, "instance", instance, "endpoint", endpoint, "heartbeat_at", now,
  "last_heartbeat", iso(now), unpack(ARGV, first_field))
redis.call("HSETNX", key, "started_at", iso(now))
redis.call("EXPIRE", key, WORKER_TTL)
redis.call("SADD", WORKERS, worker)
for i = 6, first_field - 1, 2 do reclaim(ARGV[i], tonumber(ARGV[i + 1]), worker, lease) end
recount(worker)
return "ok"
