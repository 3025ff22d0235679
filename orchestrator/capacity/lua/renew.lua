-- Renew the leases of sessions that their gateway still serves.
--
-- ARGV: lease seconds, seconds to keep what they are continued from, then of each session its id, epoch,
-- worker, variant, key and address. Answers the sessions that are no longer the gateway's: they ended, or
-- another epoch has them. A session that Redis does not know is not among them: it lost its data. Where
-- the gateway says which worker has the session it gets its slot again here; else with the worker's next
-- heartbeat.

local lost, lease = {}, tonumber(ARGV[1])
for i = 3, #ARGV, 6 do
  local session, epoch, worker = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local record = redis.call("HMGET", session_key(session), "epoch", "status")
  local ours = number(record[1]) == epoch and record[2] == "active"
  if not ours and worker ~= "" then ours = reclaim(session, epoch, worker, lease, ARGV[i + 3]) end
  if ours then
    redis.call("ZADD", LEASES, now + lease, session)
    redis.call("EXPIRE", resume_key(session), ARGV[2])
    count(session, ARGV[i + 4], ARGV[i + 5])
  elseif record[1] then
    lost[#lost + 1] = session
  end
end
return lost
