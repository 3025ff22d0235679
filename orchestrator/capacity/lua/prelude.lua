-- Put before every script of this folder: what the keys are, and how a slot is given back.
--
--   dalston:realtime:workers                  set of worker ids
--   dalston:realtime:worker:{id}              hash, the worker's record; expires with the worker
--   dalston:realtime:worker:{id}:sessions     set of session ids: the slots that are taken
--   dalston:realtime:worker:{id}:small        set of session ids: those of them that take fast_share only
--   dalston:realtime:session:{id}             hash, kept for ten minutes after the session
--   dalston:realtime:session:{id}:resume      hash, what a session is continued from
--   dalston:realtime:session:{id}:ending      there once its gateway was told to end it
--   dalston:realtime:sessions:active          set of session ids
--   dalston:realtime:leases                   sorted set: session -> when its slot comes back
--   dalston:realtime:key:{id}:sessions        set of session ids, those that wait included
--   dalston:realtime:address:{ip}:sessions    the same of a client's address
--   dalston:realtime:queues                   set of variants that sessions wait or waited for
--   dalston:realtime:queue:{variant}          sorted set: session -> when it came into the line
--   dalston:realtime:tickets                  sorted set: session -> until when it waits
--   dalston:realtime:turns                    hash: worker -> when it is due, in turns; "" -> the turn it is
--   dalston:realtime:freed                    how many slots came back with their lease
--   dalston:realtime:events                   channel
--
-- The key names share no hash tag, so none of this runs on Redis Cluster. The server's clock is
-- the only clock: gateways and workers whose clocks differ cannot take slots from each other.
-- `active_sessions` and `used` are written here and nowhere else, always counted anew.
--
-- Anybody who reaches this Redis can write here too. A key of the wrong type is deleted by slots.py,
-- which then asks again; values are taken as numbers only by number(); what is in a set or a line and
-- nowhere else is swept out (expire.lua, acquire.lua).

local PREFIX = "dalston:realtime:"
local STALE = 30           -- seconds without a heartbeat until a worker is offline
local WORKER_TTL = 3600    -- seconds that records of the dead are kept for people to look at,
local SESSION_TTL = 600    -- and of sessions, which are many
local LEASE = 30           -- seconds that a slot outlives its owner, where nobody has said it (LEASE_S in slots.py)
local SMALLER = "fast"     -- the variant whose sessions may take less than a slot
local TICKET = 5           -- seconds that a place in line outlives the last question for a slot

local time = redis.call("TIME")
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

-- What is stored, as a number that can be counted with; nil if it is none.
local function number(stored)
  local found = tonumber(stored)
  return found and math.abs(found) < 2 ^ 53 and found or nil
end

local function worker_key(id) return PREFIX .. "worker:" .. id end
local function slots_key(id) return PREFIX .. "worker:" .. id .. ":sessions" end
local function small_key(id) return PREFIX .. "worker:" .. id .. ":small" end
local function session_key(id) return PREFIX .. "session:" .. id end
local function resume_key(id) return PREFIX .. "session:" .. id .. ":resume" end
local function queue_key(variant) return PREFIX .. "queue:" .. variant end
local LEASES, ACTIVE = PREFIX .. "leases", PREFIX .. "sessions:active"
local WORKERS, EVENTS = PREFIX .. "workers", PREFIX .. "events"
local QUEUES, TICKETS = PREFIX .. "queues", PREFIX .. "tickets"
local FREED, TURNS = PREFIX .. "freed", PREFIX .. "turns"

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

-- What a session of the smaller variant takes of a slot; others take a whole one.
local function share_of(stored)
  local share = number(stored)
  return share and share > 0 and share <= 1 and share or 1
end

-- How many slots of a worker are taken, a small session counting for its share.
local function used_of(worker, share)
  local active = redis.call("SCARD", slots_key(worker))
  return active - (1 - share) * math.min(active, redis.call("SCARD", small_key(worker))), active
end

local LITTLE = 1e-6 -- what sums of shares may be wrong by

-- Count a worker's slots anew, and say whether it is full. A draining or offline worker stays so.
local function recount(worker)
  local key = worker_key(worker)
  local record = redis.call("HMGET", key, "status", "capacity", "fast_share")
  local status, share = record[1], share_of(record[3])
  if not status then return end
  local used, active = used_of(worker, share)
  if status == "ready" or status == "busy" then
    status = used + share > (number(record[2]) or 0) + LITTLE and "busy" or "ready"
  end
  redis.call("HSET", key, "active_sessions", active, "used", string.format("%.3f", used), "status", status)
end

-- Say what a session takes at its worker.
local function sized(session, worker, variant)
  redis.call(variant == SMALLER and "SADD" or "SREM", small_key(worker), session)
end

local function leave_worker(session, worker)
  redis.call("SREM", slots_key(worker), session)
  redis.call("SREM", small_key(worker), session)
  recount(worker)
end

-- Where the sessions of somebody with a limit are counted: of a "key" or of an "address".
local function counted_in(of, id) return PREFIX .. of .. ":" .. id .. ":sessions" end

-- Count a session, or one that waits to be, for its key and its address.
local function count(session, key_id, address)
  for of, id in pairs({ key = key_id, address = address }) do
    if id ~= "" then
      redis.call("HSET", session_key(session), "of_" .. of, id)
      redis.call("SADD", counted_in(of, id), session)
    end
  end
end

local function uncount(session)
  for _, of in ipairs({ "key", "address" }) do
    local id = redis.call("HGET", session_key(session), "of_" .. of)
    if id then redis.call("SREM", counted_in(of, id), session) end
  end
end

-- Take the slot from a session, whoever holds it.
local function free(session, status)
  local key = session_key(session)
  local worker = redis.call("HGET", key, "worker_id")
  redis.call("ZREM", LEASES, session)
  redis.call("SREM", ACTIVE, session)
  uncount(session)
  if worker then
    leave_worker(session, worker)
    redis.call("HSET", key, "status", status)
    redis.call("EXPIRE", key, SESSION_TTL)
  end
end

-- Give a slot of `worker`, or the share of one, to a session, and take back the one it had.
local function take(session, worker, lease, variant)
  local key = session_key(session)
  local before = redis.call("HGET", key, "worker_id")
  if before and before ~= worker then leave_worker(session, before) end
  redis.call("HSET", key, "worker_id", worker, "status", "active")
  redis.call("HSETNX", key, "started_at", iso(now))
  redis.call("HDEL", key, "expired_at")
  redis.call("SADD", slots_key(worker), session)
  sized(session, worker, variant)
  redis.call("SADD", ACTIVE, session)
  redis.call("ZADD", LEASES, now + lease, session)
  redis.call("PERSIST", key)
  recount(worker)
end

local OVER = { ended = true, error = true, waiting = true } -- without a slot; other words are none of ours

-- Somebody serves this session with this epoch and says so. Redis may not know it, after it lost
-- its data, or may have thought it dead, after nobody could reach Redis for as long as a lease:
-- then the slot is taken again. Answers whether the session has its slot.
local function reclaim(session, epoch, worker, lease, variant)
  local key = session_key(session)
  local record = redis.call("HMGET", key, "epoch", "status", "expired_at")
  local known = number(record[1])
  if known == epoch and record[2] == "active" then return true end
  local over = OVER[record[2]] and not record[3]
  if known and (known > epoch or (known == epoch and over)) then return false end
  redis.call("HSET", key, "epoch", epoch)
  take(session, worker, lease, variant)
  return true
end

local function leave_line(session)
  if redis.call("ZREM", TICKETS, session) == 0 then return end
  for _, variant in ipairs(redis.call("SMEMBERS", QUEUES)) do
    redis.call("ZREM", queue_key(variant), session)
  end
end

-- Out of the line without a slot.
local function give_up(session)
  leave_line(session)
  local key = session_key(session)
  local record = redis.call("HMGET", key, "status", "epoch")
  if record[1] ~= "waiting" then return end
  uncount(session)
  if record[2] then
    redis.call("HSET", key, "status", "ended") -- it was a session before it waited
  else
    redis.call("DEL", key)
  end
end

-- Nothing lasts longer than it was given, and nobody has come in the future: what seems so was written
-- before this clock was set back. Without this, slots of the dead would be taken for as long as that.
local function drop_future()
  for key, longest in pairs({ [LEASES] = LEASE, [TICKETS] = TICKET }) do
    for _, session in ipairs(redis.call("ZRANGEBYSCORE", key, now + longest + 1, "+inf")) do
      redis.call("ZADD", key, now + longest, session)
    end
  end
  for _, worker in ipairs(redis.call("SMEMBERS", WORKERS)) do
    local heartbeat = tonumber(redis.call("HGET", worker_key(worker), "heartbeat_at"))
    if heartbeat and heartbeat > now then redis.call("HSET", worker_key(worker), "heartbeat_at", now) end
  end
end

-- Slots whose owner has died come back, and so do places in line.
local function drop_expired()
  for _, session in ipairs(redis.call("ZRANGEBYSCORE", TICKETS, "-inf", now)) do give_up(session) end
  local expired = redis.call("ZRANGEBYSCORE", LEASES, "-inf", now)
  for _, session in ipairs(expired) do
    free(session, "error")
    redis.call("HSET", session_key(session), "expired_at", now)
    redis.call("EXPIRE", session_key(session), SESSION_TTL)
  end
  if #expired > 0 then
    redis.call("SET", FREED, (number(redis.call("GET", FREED)) or 0) + #expired)
  end
end

-- Neither long ago, nor in a time to come: clocks of two servers differ by seconds.
local function fresh(worker)
  local heartbeat = number(redis.call("HGET", worker_key(worker), "heartbeat_at"))
  return heartbeat and math.abs(now - heartbeat) <= STALE
end
