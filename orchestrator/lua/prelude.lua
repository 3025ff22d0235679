-- Put before every script of this folder: what the keys are, and how a slot is given back.
--
--   dalston:realtime:workers                  set of worker ids
--   dalston:realtime:worker:{id}              hash, the worker's record; expires with the worker
--   dalston:realtime:worker:{id}:sessions     set of session ids: the slots that are taken
--   dalston:realtime:session:{id}             hash, kept for an hour after the session
--   dalston:realtime:sessions:active          set of session ids
--   dalston:realtime:leases                   sorted set: session -> when its slot comes back
--   dalston:realtime:events                   channel
--
-- The key names share no hash tag, so none of this runs on Redis Cluster. The server's clock is
-- the only clock: gateways and workers whose clocks differ cannot take slots from each other.
-- `active_sessions` is written here and nowhere else, always counted anew.

local PREFIX = "dalston:realtime:"
local STALE = 30           -- seconds without a heartbeat until a worker is offline
local RECORD_TTL = 3600    -- seconds that records of the dead are kept for people to look at

local time = redis.call("TIME")
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

local function worker_key(id) return PREFIX .. "worker:" .. id end
local function slots_key(id) return PREFIX .. "worker:" .. id .. ":sessions" end
local function session_key(id) return PREFIX .. "session:" .. id end
local LEASES, ACTIVE = PREFIX .. "leases", PREFIX .. "sessions:active"
local WORKERS, EVENTS = PREFIX .. "workers", PREFIX .. "events"

-- ISO 8601 in UTC, for people (Hinnant, "chrono-compatible low-level date algorithms").
local function iso(seconds)
  local days, rest = math.floor(seconds / 86400), math.floor(seconds % 86400)
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format("%04d-%02d-%02dT%02d:%02d:%02dZ", year, month, day,
    math.floor(rest / 3600), math.floor(rest % 3600 / 60), rest % 60)
end

-- Count a worker's slots anew, and say whether it is full. A draining or offline worker stays so.
local function recount(worker)
  local key = worker_key(worker)
  local status = redis.call("HGET", key, "status")
  if not status then return end
  local active = redis.call("SCARD", slots_key(worker))
  if status == "ready" or status == "busy" then
    local capacity = tonumber(redis.call("HGET", key, "capacity")) or 0
    status = active >= capacity and "busy" or "ready"
  end
  redis.call("HSET", key, "active_sessions", active, "status", status)
end

-- Take the slot from a session, whoever holds it.
local function free(session, status)
  local key = session_key(session)
  local worker = redis.call("HGET", key, "worker_id")
  redis.call("ZREM", LEASES, session)
  redis.call("SREM", ACTIVE, session)
  if worker then
    redis.call("SREM", slots_key(worker), session)
    recount(worker)
    redis.call("HSET", key, "status", status)
    redis.call("EXPIRE", key, RECORD_TTL)
  end
end

-- Give a slot of `worker` to a session.
local function take(session, worker, lease)
  redis.call("SADD", slots_key(worker), session)
  redis.call("SADD", ACTIVE, session)
  redis.call("ZADD", LEASES, now + lease, session)
  redis.call("PERSIST", session_key(session))
  recount(worker)
end

-- Slots whose owner has died come back.
local function drop_expired()
  local expired = redis.call("ZRANGEBYSCORE", LEASES, "-inf", now)
  for _, session in ipairs(expired) do free(session, "error") end
  return #expired
end

local function fresh(worker)
  local heartbeat = tonumber(redis.call("HGET", worker_key(worker), "heartbeat_at"))
  return heartbeat and now - heartbeat <= STALE
end
