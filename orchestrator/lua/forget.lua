-- The session ended in order: nobody will continue it. ARGV: session, epoch. Nothing happens when
-- another epoch has the session.

local session, epoch = ARGV[1], tonumber(ARGV[2])
local known = tonumber(redis.call("HGET", session_key(session), "epoch"))
local kept = tonumber(redis.call("HGET", resume_key(session), "epoch"))
if math.max(known or 0, kept or 0) <= epoch then redis.call("DEL", resume_key(session)) end
