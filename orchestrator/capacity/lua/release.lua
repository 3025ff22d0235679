-- Give a slot back. Any number of times, by gateway and worker alike: the first one counts, and
-- none of an older epoch.
--
-- ARGV: session, epoch, status ("ended" or "error"), then field, value, ...: what else its record says
-- in the end. Answers 1 if it freed one.

local session, epoch = ARGV[1], tonumber(ARGV[2])
local key = session_key(session)
local record = redis.call("HMGET", key, "epoch", "status")
local known = number(record[1])
if known == epoch and record[2] == "active" then
  redis.call("HSET", key, unpack(ARGV, 4))
  free(session, ARGV[3])
  return 1
end
if known == epoch then
  redis.call("HDEL", key, "expired_at")
elseif not known then
  -- Redis lost it. A heartbeat that was on its way must not bring it back.
  redis.call("HSET", key, "epoch", epoch, "status", ARGV[3], unpack(ARGV, 4))
  redis.call("EXPIRE", key, SESSION_TTL)
end
return 0
