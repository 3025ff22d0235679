-- Keep what a session is continued from, should its client or its gateway be gone.
--
-- ARGV: session, epoch, key, "" if these are all fields there are or the first of them, else how many
-- were kept before, seconds to keep them, then field, value, ... Answers "kept"; or, with nothing
-- written, "taken_over" when another epoch has the session, and "lost" when not all is there that these
-- fields add to: the data of Redis were lost, or another server lacks the last that was written.

local session, epoch = ARGV[1], tonumber(ARGV[2])
local resume = resume_key(session)
local known = number(redis.call("HGET", session_key(session), "epoch"))
local kept = number(redis.call("HGET", resume, "epoch"))
-- An older epoch on record is no owner: a worker that is out of date told of it after Redis lost its data.
if math.max(known or 0, kept or 0) > epoch then return "taken_over" end
-- Besides these fields a record has its epoch and its key.
if ARGV[4] ~= "" and (not kept or redis.call("HLEN", resume) < tonumber(ARGV[4]) + 2) then return "lost" end
redis.call("HSET", resume, "epoch", epoch, unpack(ARGV, 6))
redis.call("HSETNX", resume, "key_id", ARGV[3])
redis.call("EXPIRE", resume, ARGV[5])
return "kept"
