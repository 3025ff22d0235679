-- Take a slot of the least loaded worker for a session, when it is its turn.
--
-- ARGV: session, lease seconds, variant, worker to avoid (or ""), key and its limit, address and its
-- limit (0: none), ticket, degrade ("1" or "0"), the epoch that the caller knows (or 0), until when they
-- wait for the answer (or 0), then field, value, ... of the session's record. The ticket is "" for one
-- that does not wait, "new" for one that would, and for one that waits already, when they came: should
-- Redis have lost the line, they have their place again.
--
-- Answers this clock, then "slot", worker, endpoint, epoch; or "limit", "key" or "address"; or "none",
-- reason, position in line (0: not in line), when they came; or "late": Redis hung, and nobody would
-- use the slot. The reasons: "no_workers" none is alive, "draining" all that live are going, "full"
-- every slot is taken or wanted by others before, "taken_over" another gateway has the session.
--
-- A session that holds a slot already is taken over: the slot passes to the new worker and the
-- epoch goes up, after which nothing the old owner says counts.

local LONGEST_LINE = 1000 -- of all variants

local session, lease, variant, avoid = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local key_id, key_limit = ARGV[5], tonumber(ARGV[6])
local address, address_limit = ARGV[7], tonumber(ARGV[8])
local ticket, degrade, known_epoch = ARGV[9], ARGV[10] == "1", tonumber(ARGV[11])
local until_when = tonumber(ARGV[12])
local key = session_key(session)
local clock = string.format("%.6f", now)

if until_when > 0 and now > until_when then return { clock, "late" } end
drop_expired()
local takeover = known_epoch > 0 or redis.call("HGET", key, "status") == "active"

-- A gateway that was not awake for a while may not know that another has its session now. It may
-- not know of its own last question either, if the answer was lost: that is no other.
if known_epoch > 0 then
  local record = redis.call("HMGET", key, "epoch", "gateway")
  local gateway
  for i = 13, #ARGV, 2 do if ARGV[i] == "gateway" then gateway = ARGV[i + 1] end end
  if record[1] and tonumber(record[1]) > known_epoch and record[2] and record[2] ~= gateway then
    return { clock, "none", "taken_over", 0, "" }
  end
end

-- Whether somebody has as many sessions as they may, this one not counted.
local function reached(of, id, limit)
  local set = counted_in(of, id)
  if id == "" or limit == 0 or redis.call("SISMEMBER", set, session) == 1 then return false end
  if redis.call("SCARD", set) < limit then return false end
  -- Before anybody is refused: none may be counted whose record was lost.
  for _, other in ipairs(redis.call("SMEMBERS", set)) do
    if not redis.call("ZSCORE", LEASES, other) and not redis.call("ZSCORE", TICKETS, other) then
      redis.call("SREM", set, other)
    end
  end
  return redis.call("SCARD", set) >= limit
end

if not takeover then
  if reached("key", key_id, key_limit) then return { clock, "limit", "key" } end
  if reached("address", address, address_limit) then return { clock, "limit", "address" } end
end

-- Who could serve: the workers that take sessions, and what they have.
local reason, workers, offered = "no_workers", {}, {}
for _, id in ipairs(redis.call("SMEMBERS", WORKERS)) do
  local record = redis.call("HMGET", worker_key(id), "status", "capacity", "models")
  local status, capacity = record[1], tonumber(record[2]) or 0
  if status and status ~= "offline" and id ~= avoid and fresh(id) then
    if status == "draining" then
      if reason == "no_workers" then reason = "draining" end
    else
      reason = "full"
      local active = redis.call("SCARD", slots_key(id))
      if redis.call("SISMEMBER", slots_key(id), session) == 1 then active = active - 1 end
      local has = {}
      for name in string.gmatch(record[3] or "", '"([^"]+)"') do
        has[name], offered[name] = true, true
      end
      workers[#workers + 1] = { id = id, free = capacity - active, load = active / capacity, has = has }
    end
  end
end

-- Another variant than the one asked for is better than none, not better than waiting for it.
local function serves(worker, wanted) return worker.has[wanted] or not offered[wanted] end

-- How many wait before this session, by variant.
local came = ticket ~= "" and (redis.call("ZSCORE", queue_key(variant), session)
  or (ticket ~= "new" and ticket) or clock)
local before = {}
if not takeover then
  for _, wanted in ipairs(redis.call("SMEMBERS", QUEUES)) do
    local waiting = came and redis.call("ZCOUNT", queue_key(wanted), "-inf", "(" .. came)
      or redis.call("ZCARD", queue_key(wanted))
    if waiting > 0 then before[wanted] = waiting end
  end
end

-- The worker for a session that wants this variant, if there is a slot that nobody before it would
-- take. Those who wait for other variants are before it only where a worker serves both; of
-- workers that have room, one they cannot use goes first.
local function best_for(wanted)
  local best, room, claimed = nil, 0, {}
  for _, worker in ipairs(workers) do
    if worker.free > 0 and serves(worker, wanted) then
      room = room + worker.free
      worker.contested = 0
      for other in pairs(before) do
        if other ~= wanted and serves(worker, other) then
          claimed[other] = (claimed[other] or 0) + worker.free
          worker.contested = worker.contested + 1
        end
      end
      if not best or worker.contested < best.contested or (worker.contested == best.contested
          and (worker.load < best.load or (worker.load == best.load and worker.id < best.id))) then
        best = worker
      end
    end
  end
  room = room - (before[wanted] or 0)
  for other, slots in pairs(claimed) do room = room - math.min(before[other], slots) end
  return room > 0 and best or nil
end

local best = best_for(variant)
if not best and degrade then
  local others = {}
  for name in pairs(offered) do others[#others + 1] = name end
  table.sort(others)
  for _, other in ipairs(others) do best = best or best_for(other) end
end

if not best then
  if not came or takeover then return { clock, "none", reason, 0, "" } end
  if not redis.call("ZSCORE", TICKETS, session) then
    -- Where there is nobody to wait for, nobody begins to wait.
    if ticket == "new" and (reason == "no_workers" or redis.call("ZCARD", TICKETS) >= LONGEST_LINE) then
      return { clock, "none", reason, 0, "" }
    end
    redis.call("SADD", QUEUES, variant)
    redis.call("ZADD", queue_key(variant), came, session)
    redis.call("HSET", key, "status", "waiting")
    count(session, key_id, address)
    redis.call("EXPIRE", key, SESSION_TTL)
  end
  redis.call("ZADD", TICKETS, now + TICKET, session)
  local position = 1 + (before[variant] or 0)
  for other, waiting in pairs(before) do
    local shared = #workers == 0
    for _, worker in ipairs(workers) do
      shared = shared or (serves(worker, variant) and serves(worker, other))
    end
    if other ~= variant and shared then position = position + waiting end
  end
  return { clock, "none", reason, position, came }
end

leave_line(session)
uncount(session)
local epoch = math.max(tonumber(redis.call("HGET", key, "epoch")) or 0, known_epoch) + 1
redis.call("HSET", key, "epoch", epoch, unpack(ARGV, 13))
count(session, key_id, address)
take(session, best.id, lease)
return { clock, "slot", best.id, redis.call("HGET", worker_key(best.id), "endpoint"), epoch }
