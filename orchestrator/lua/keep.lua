-- Keep what a session is continued from, should its client or its gateway be gone.
--
-- ARGV: session, epoch, key, then field, value, ... Answers 1, or 0 with nothing written when another
-- epoch has the session. A session that is not on record was lost with the data of Redis.

local session, epoch = ARGV[1], tonumber(ARGV[2])
local resume = resume_key(session)
local known = tonumber(redis.call("HGET", session_key(session), "epoch"))
local kept = tonumber(redis.call("HGET", resume, "epoch"))
if (known and known ~= epoch) or (kept and kept > epoch) then return 0 end
redis.call("HSET", resume, "epoch", epoch, unpack(ARGV, 4))
redis.call("HSETNX", resume, "key_id", ARGV[3])
redis.call("EXPIRE", resume, RESUME_TTL)
return 1
