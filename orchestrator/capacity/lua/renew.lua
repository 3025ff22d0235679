-- Renew the leases of sessions that their gateway still serves.
--
-- ARGV: lease seconds, then session, epoch, worker, key, address, ... Answers the sessions that are
-- no longer the gateway's: they ended, or another epoch has them. A session that Redis does not know
-- is not among them: it lost its data. Where the gateway says which worker has the session it gets its
-- slot again here; else with the worker's next heartbeat.

local lost, lease = {}, tonumber(ARGV[1])
for i = 2, #ARGV, 5 do
  local session, epoch, worker = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local record = redis.call("HMGET", session_key(session), "epoch", "status")
  local ours = tonumber(record[1]) == epoch and record[2] == "active"
  if not ours and worker ~= "" then ours = reclaim(session, epoch, worker, lease) end
  if ours then
    redis.call("ZADD", LEASES, now + lease, session)
    redis.call("EXPIRE", resume_key(session), RESUME_TTL)
    count(session, ARGV[i + 3], ARGV[i + 4])
  elseif record[1] then
    lost[#lost + 1] = session
  end
end
return lost
