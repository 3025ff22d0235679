-- Keep what a session is continued from, should its client or its gateway be gone.
--
-- ARGV: session, epoch, key, "1" if these are all fields there are or the first of them, seconds to
-- keep them, then field, value, ... Answers "kept"; or, with nothing written, "taken_over" when another
-- epoch has the session, and "lost" when what these fields add to is not there. A session that is not on
-- record was lost with the data of Redis.

local session, epoch = ARGV[1], tonumber(ARGV[2])
local resume = resume_key(session)
local known = number(redis.call("HGET", session_key(session), "epoch"))
local kept = number(redis.call("HGET", resume, "epoch"))
-- An older epoch on record is no owner: a worker that is out of date told of it after Redis lost its data.
if math.max(known or 0, kept or 0) > epoch then return "taken_over" end
if not kept and ARGV[4] ~= "1" then return "lost" end
redis.call("HSET", resume, "epoch", epoch, unpack(ARGV, 6))
redis.call("HSETNX", resume, "key_id", ARGV[3])
redis.call("EXPIRE", resume, ARGV[5])
return "kept"
