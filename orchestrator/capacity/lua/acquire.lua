-- Take a slot for a session, when it is its turn.
--
-- ARGV: session, lease seconds, variant, worker to avoid (or ""), key and its limit, address and its
-- limit (0: none), ticket, degrade ("1" or "0"), the epoch that the caller knows (or 0), until when they
-- wait for the answer (or 0), strategy, partner (or ""), then field, value, ... of the session's record.
-- A session and its partner, the other channel of a connection, are given slots together or not at all,
-- and wait in one place of the line that counts for two. The ticket is ""
-- for one that does not wait, "new" for one that would, and for one that waits already, when they came:
-- should Redis have lost the line, they have their place again. The strategy says which of the workers
-- that have room: "least_loaded"; "round_robin", one after the other; "weighted", in turns as well, of
-- which a worker has as many as it has slots.
--
-- Answers this clock, then "slot", variant, and worker, endpoint, epoch of the session and of its partner;
-- or "limit", "key" or "address"; or
-- "none", reason, position in line (0: not in line), when they came; or "late": Redis hung, and nobody
-- would use the slot. The variant is the smaller one where the session was degraded. The reasons: "no_workers" none is alive, "draining" all that live are going, "full"
-- every slot is taken or wanted by others before, "taken_over" another gateway has the session.
--
-- A session that holds a slot already is taken over: the slot passes to the new worker and the
-- epoch goes up, after which nothing the old owner says counts.

local LONGEST_LINE = 1000 -- of all variants

local session, lease, variant, avoid = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local key_id, key_limit = ARGV[5], tonumber(ARGV[6])
local address, address_limit = ARGV[7], tonumber(ARGV[8])
local ticket, degrade, known_epoch = ARGV[9], ARGV[10] == "1", tonumber(ARGV[11])
local until_when, strategy = tonumber(ARGV[12]), ARGV[13]
local sessions = ARGV[14] ~= "" and { session, ARGV[14] } or { session }
local clock = string.format("%.6f", now)

if until_when > 0 and now > until_when then return { clock, "late" } end
-- The first write is one that a Redis refuses whose memory is full: after another it would refuse none
-- of these, and a session would begin whose lease cannot be renewed.
redis.call("SADD", QUEUES, variant)
drop_expired()
local takeover = known_epoch > 0
for _, id in ipairs(sessions) do
  takeover = takeover or redis.call("HGET", session_key(id), "status") == "active"
end

-- A gateway that was not awake for a while may not know that another has its session now. It may
-- not know of its own last question either, if the answer was lost: that is no other.
if known_epoch > 0 then
  local record = redis.call("HMGET", session_key(session), "epoch", "gateway")
  local gateway
  for i = 15, #ARGV, 2 do if ARGV[i] == "gateway" then gateway = ARGV[i + 1] end end
  if number(record[1]) and number(record[1]) > known_epoch and record[2] and record[2] ~= gateway then
    return { clock, "none", "taken_over", 0, "" }
  end
end

-- Whether somebody has as many sessions as they may, these not counted.
local function reached(of, id, limit)
  local set = counted_in(of, id)
  if id == "" or limit == 0 or redis.call("SISMEMBER", set, session) == 1 then return false end
  local most = limit - #sessions
  if redis.call("SCARD", set) <= most then return false end
  -- Before anybody is refused: none may be counted whose record was lost.
  for _, other in ipairs(redis.call("SMEMBERS", set)) do
    if not redis.call("ZSCORE", LEASES, other) and not redis.call("ZSCORE", TICKETS, other) then
      redis.call("SREM", set, other)
    end
  end
  return redis.call("SCARD", set) > most
end

if not takeover then
  if reached("key", key_id, key_limit) then return { clock, "limit", "key" } end
  if reached("address", address, address_limit) then return { clock, "limit", "address" } end
end

-- Who could serve: the workers that take sessions, and what they have.
local reason, workers, offered = "no_workers", {}, {}
local turns, turn = {}, 0
if strategy ~= "least_loaded" then
  local stored = redis.call("HGETALL", TURNS)
  for i = 1, #stored, 2 do turns[stored[i]] = number(stored[i + 1]) end
  turn = turns[""] or 0
end
for _, id in ipairs(redis.call("SMEMBERS", WORKERS)) do
  local record = redis.call("HMGET", worker_key(id), "status", "capacity", "models", "fast_share", "endpoint")
  local status, capacity, endpoint = record[1], number(record[2]) or 0, record[5] or ""
  if status and status ~= "offline" and id ~= avoid and fresh(id) and endpoint:find("^wss?://[^%s]+$") then
    if status == "draining" then
      if reason == "no_workers" then reason = "draining" end
    else
      reason = "full"
      local share = share_of(record[4])
      local used = used_of(id, share)
      for _, own in ipairs(sessions) do
        if redis.call("SISMEMBER", slots_key(id), own) == 1 then
          used = used - (redis.call("SISMEMBER", small_key(id), own) == 1 and share or 1)
        end
      end
      local has = {}
      for name in string.gmatch(record[3] or "", '"([^"]+)"') do
        has[name], offered[name] = true, true
      end
      -- A worker that had no room for a while does not catch up on the turns it missed.
      local due = math.max(turns[id] or 0, turn)
      workers[#workers + 1] = {
        id = id, endpoint = endpoint, share = share, free = capacity - used, has = has,
        capacity = capacity, step = strategy == "weighted" and 1 / math.max(capacity, 1) or 1,
        rank = strategy == "least_loaded" and used / capacity or due }
    end
  end
end

-- Another variant than the one asked for is better than none, not better than waiting for it.
local function serves(worker, wanted) return worker.has[wanted] or not offered[wanted] end

-- What a session that wants this variant takes of a slot there, and for how many there is room.
local function served_as(worker, wanted)
  if worker.has[wanted] then return wanted end
  return worker.has[SMALLER] and SMALLER or "another"
end
local function cost(worker, wanted)
  return served_as(worker, wanted) == SMALLER and worker.share or 1
end
local function places(worker, wanted)
  return math.floor((worker.free + LITTLE) / cost(worker, wanted))
end

-- How many wait before this session, by variant. More in the lines than have tickets: somebody stands
-- there whom nobody knows.
local came = ticket ~= "" and (redis.call("ZSCORE", queue_key(variant), session)
  or (ticket ~= "new" and number(ticket) and ticket) or clock)
local before = {}
if not takeover then
  local queues, standing = redis.call("SMEMBERS", QUEUES), 0
  for _, wanted in ipairs(queues) do standing = standing + redis.call("ZCARD", queue_key(wanted)) end
  if standing > redis.call("ZCARD", TICKETS) then
    for _, wanted in ipairs(queues) do
      for _, other in ipairs(redis.call("ZRANGE", queue_key(wanted), 0, -1)) do
        if not redis.call("ZSCORE", TICKETS, other) then redis.call("ZREM", queue_key(wanted), other) end
      end
    end
  end
  for _, wanted in ipairs(queues) do
    local waiting = came and redis.call("ZCOUNT", queue_key(wanted), "-inf", "(" .. came)
      or redis.call("ZCARD", queue_key(wanted))
    if waiting > 0 then before[wanted] = waiting end
  end
end

-- The worker for a session that wants this variant, if there is a slot that nobody before it would
-- take. Those who wait for other variants are before it only where a worker serves both, also where
-- they need more than is free: smaller ones would take it again and again. Of workers that have room,
-- one they cannot use goes first. more: slots that have to be left, besides.
local function best_for(wanted, more)
  local best, room, claimed, size = nil, 0, {}, {}
  for _, worker in ipairs(workers) do
    local there = places(worker, wanted)
    if there > 0 and serves(worker, wanted) then
      room = room + there
      worker.contested = 0
      for other in pairs(before) do
        if other ~= wanted and serves(worker, other) then
          claimed[other] = (claimed[other] or 0) + there
          size[other] = math.max(size[other] or 1, math.ceil(cost(worker, other) / cost(worker, wanted) - LITTLE))
          worker.contested = worker.contested + 1
        end
      end
      if not best or worker.contested < best.contested or (worker.contested == best.contested
          and (worker.rank < best.rank or (worker.rank == best.rank and worker.id < best.id))) then
        best = worker
      end
    end
  end
  room = room - (before[wanted] or 0)
  for other, there in pairs(claimed) do room = room - math.min(before[other] * size[other], there) end
  return room > more and best or nil
end

-- A worker for each session, and what turn it is then; nil unless there is one for all.
local function chosen_for(wanted)
  local chosen = {}
  for i = 1, #sessions do
    local best = best_for(wanted, #sessions - i)
    if not best then
      for _, turn in ipairs(chosen) do turn.worker.free = turn.worker.free + cost(turn.worker, wanted) end
      return nil
    end
    chosen[i] = { worker = best, rank = best.rank, next = best.rank + best.step }
    best.free = best.free - cost(best, wanted)
    best.rank = best.rank + (strategy == "least_loaded" and cost(best, wanted) / best.capacity or best.step)
  end
  return chosen
end

-- Degraded is down to the smaller variant, never up.
local chosen, granted = chosen_for(variant), variant
if not chosen and degrade and variant ~= SMALLER and offered[SMALLER] then
  chosen, granted = chosen_for(SMALLER), SMALLER
end

if not chosen then
  if not came or takeover then return { clock, "none", reason, 0, "" } end
  if not redis.call("ZSCORE", TICKETS, session) then
    -- Where there is nobody to wait for, nobody begins to wait.
    if ticket == "new" and (reason == "no_workers" or redis.call("ZCARD", TICKETS) >= LONGEST_LINE) then
      return { clock, "none", reason, 0, "" }
    end
    for _, id in ipairs(sessions) do
      redis.call("ZADD", queue_key(variant), came, id)
      redis.call("HSET", session_key(id), "status", "waiting")
      count(id, key_id, address)
      redis.call("EXPIRE", session_key(id), SESSION_TTL)
    end
  end
  for _, id in ipairs(sessions) do redis.call("ZADD", TICKETS, now + TICKET, id) end
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

local answer = { clock, "slot", granted }
for i, id in ipairs(sessions) do
  local key, worker = session_key(id), chosen[i].worker
  leave_line(id)
  uncount(id)
  local epoch = math.max(number(redis.call("HGET", key, "epoch")) or 0, known_epoch) + 1
  redis.call("HSET", key, "epoch", epoch, unpack(ARGV, 15))
  redis.call("HSET", key, "model", granted)
  count(id, key_id, address)
  take(id, worker.id, lease, served_as(worker, granted))
  if strategy ~= "least_loaded" then
    redis.call("HSET", TURNS, worker.id, chosen[i].next, "", chosen[i].rank)
    redis.call("EXPIRE", TURNS, WORKER_TTL)
  end
  for _, told in ipairs({ worker.id, worker.endpoint, epoch }) do answer[#answer + 1] = told end
end
return answer
