-- Give a slot back. Any number of times, by gateway and worker alike: the first one counts, and
-- none of an older epoch.
--
-- ARGV: session, epoch, status ("ended" or "error"), seconds of audio. Answers 1 if it freed one.

local session, epoch = ARGV[1], tonumber(ARGV[2])
local record = redis.call("HMGET", session_key(session), "epoch", "status")
if tonumber(record[1]) ~= epoch or record[2] ~= "active" then return 0 end
redis.call("HSET", session_key(session), "audio_duration", ARGV[4])
free(session, ARGV[3])
return 1
