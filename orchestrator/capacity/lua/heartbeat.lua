-- A worker is alive: write its whole record, the indexes included, and put its sessions back.
--
-- ARGV: worker, instance, endpoint, lease seconds, seconds since its process began, an instance that is
-- known to be dead or "", number of sessions, then of each session its id, epoch, variant, language and seconds of audio, then field, value, ...
-- Answers "ok", or "taken", an instance and its endpoint when another living process uses this worker
-- id. A process at the same endpoint is no other: it was started again, and its predecessor is dead.
--
-- Every heartbeat does all of it, so that a Redis that lost its data is whole again with the next.
-- The record never says how many sessions there are: that is counted here. Sessions of an older
-- epoch than the recorded one were taken over by another worker, and are not put back.

local worker, instance, endpoint = ARGV[1], ARGV[2], ARGV[3]
local lease, running_s, dead, served = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local key = worker_key(worker)

local known = redis.call("HMGET", key, "instance", "endpoint", "status")
if known[1] and known[1] ~= instance and known[1] ~= dead and known[2] ~= endpoint
    and known[3] ~= "offline" and fresh(worker) then
  return { "taken", known[1], known[2] }
end

local first_field = 8 + 5 * served
redis.call("HSET", key, "instance", instance, "endpoint", endpoint, "heartbeat_at", now,
  "last_heartbeat", iso(now), unpack(ARGV, first_field))
if known[1] ~= instance then redis.call("HSET", key, "started_at", iso(now - running_s)) end
redis.call("EXPIRE", key, WORKER_TTL)
redis.call("SADD", WORKERS, worker)
for i = 8, first_field - 1, 5 do
  local session, variant = ARGV[i], ARGV[i + 2]
  if reclaim(session, tonumber(ARGV[i + 1]), worker, lease, variant) then
    sized(session, worker, variant)
    redis.call("HSET", session_key(session), "model", variant, "language", ARGV[i + 3],
      "audio_duration", ARGV[i + 4])
  end
end
recount(worker)
return { "ok" }
