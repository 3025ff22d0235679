-- Renew the leases of sessions that their gateway still serves.
--
-- ARGV: lease seconds, then session, epoch, ... Answers the sessions that are no longer the
-- gateway's: their lease ran out, or another epoch has them. A session without any record is not
-- among them: Redis lost its data, and the worker's next heartbeat puts it back.

local lost = {}
for i = 2, #ARGV, 2 do
  local session, epoch = ARGV[i], tonumber(ARGV[i + 1])
  local record = redis.call("HMGET", session_key(session), "epoch", "status")
  if tonumber(record[1]) == epoch and record[2] == "active" then
    redis.call("ZADD", LEASES, "XX", now + tonumber(ARGV[1]), session)
  else
    if record[1] then lost[#lost + 1] = session end
  end
end
return lost
