-- A worker leaves in order. ARGV: worker, instance. Its sessions, if any, keep their leases.

local key = worker_key(ARGV[1])
if redis.call("HGET", key, "instance") ~= ARGV[2] then return 0 end
redis.call("SREM", WORKERS, ARGV[1])
redis.call("HDEL", TURNS, ARGV[1])
redis.call("DEL", key)
return 1
