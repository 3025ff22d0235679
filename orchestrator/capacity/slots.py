"""
Which workers have room: workers, their slots and the sessions in them, in Redis.

Each operation is one Lua script (lua/*.lua), so it happens whole or not at all, whoever else is
at work. A slot is held by a lease: a gateway renews the leases of its sessions, and those of a
gateway that died come back by themselves. Epochs tell takeovers apart: the second worker of a
session has epoch 2, and what the first still says is ignored. Who finds no slot can wait in a line
that all gateways share.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import redis.asyncio
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dalston.orchestrator.capacity.redis_client import redis_client, refuse_cluster

__all__ = ["redis_client"]  # a client is what Slots are made of

logger = logging.getLogger(__name__)

EVENTS = "dalston:realtime:events"
LEASE_S = 30  # how long a slot outlives its owner
ACQUIRE_S = 2.0  # a caller is told so soon that Redis does not answer
AGAIN_S = 0.2  # between attempts to reach a Redis that is gone
WRITTEN_AGAIN_S = 5  # after the start of a Redis gateways have told it all they know
PART = 1_000  # fields that are written at once: it takes Redis about 2 ms, in which nobody is answered
HEARTBEAT_S = 10  # a worker is offline after three of them (STALE in prelude.lua)

Status = Literal["ready", "busy", "draining", "offline"]


@dataclass(frozen=True)
class Slot:
    session_id: str
    worker_id: str
    endpoint: str  # ws://host:port
    epoch: int
    # Whose limits the session counts for; told again with each renewal.
    key_id: str = ""
    address: str = ""


class NoCapacity(Exception):
    """There is no slot. `reason`: no_workers, draining, full or taken_over."""

    def __init__(self, reason: str, position: int = 0, came: str = ""):
        super().__init__(reason)
        self.reason = reason
        self.position = position  # in line, 1 is the next; 0 is not in line
        self.came = came  # when the session came into the line, by Redis's clock


class TooMany(Exception):
    """A key or an address has as many sessions as it may, those in line included."""

    def __init__(self, of: Literal["key", "address"]):
        super().__init__(of)
        self.of: Literal["key", "address"] = of


class WorkerIdTaken(Exception):
    """Another living process has registered under this worker id."""


@dataclass(frozen=True)
class Registration:
    """What a worker says of itself with each heartbeat."""

    worker_id: str
    instance: str  # of this process: tells it from another with the same id
    endpoint: str
    status: Literal["ready", "draining"]
    capacity: int
    models: Sequence[str]  # variants
    models_loaded: Sequence[str]  # checkpoints, without those of unloaded models
    languages: Sequence[str]
    version: str
    gpu_memory_used: str | None = None  # "4.2GB"; absent without a GPU
    gpu_memory_total: str | None = None
    asleep: Sequence[str] = ()  # variants that are loaded when a session comes


@dataclass(frozen=True)
class WorkerRecord:
    worker_id: str
    status: Status
    capacity: int
    active_sessions: int
    endpoint: str
    models: list[str]
    heartbeat_at: float = 0.0  # by Redis's clock
    asleep: Sequence[str] = ()  # of the models


def _event(data: bytes | str) -> Mapping[str, str] | None:
    """What somebody has published; None if it is no event: anybody who reaches Redis may."""
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not all(isinstance(v, str) for v in event.values()):  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        logger.warning("what came as an event is none: %.100r", data)
        return None
    return event  # pyright: ignore[reportUnknownVariableType]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Slots:
    """All operations raise redis.RedisError when Redis cannot be reached."""

    def __init__(self, client: "redis.asyncio.Redis"):
        self._redis: Any = client
        self._clock: float | None = None  # Redis's, ahead of ours
        self.errors = 0  # operations that failed
        folder = files("dalston.orchestrator.capacity") / "lua"
        prelude = (folder / "prelude.lua").read_text()

        def script(name: str) -> Any:
            run = self._redis.register_script(prelude + (folder / f"{name}.lua").read_text())

            async def counted(args: list[Any]) -> Any:
                try:
                    return await run(args=args)
                except RedisError:
                    self.errors += 1
                    raise

            return counted

        self._acquire, self._renew = script("acquire"), script("renew")
        self._release, self._expire = script("release"), script("expire")
        self._keep, self._leave = script("keep"), script("leave")
        self._heartbeat, self._unregister = script("heartbeat"), script("unregister")

    # For gateways.

    async def acquire(
        self,
        session_id: str,
        variant: str,
        record: Mapping[str, str | int],
        *,
        avoid: str = "",
        lease_s: float = LEASE_S,
        key_id: str = "",
        key_limit: int = 0,
        address: str = "",
        address_limit: int = 0,
        ticket: bool | str = False,
        degrade: bool = False,
        epoch: int = 0,
    ) -> Slot:
        """A slot of the least loaded worker with the variant; `record` is kept with the session.

        Raises NoCapacity, also where others in line would take the free slots, and TooMany. With a
        `ticket` the session stands in line itself, for as long as it asks again within five
        seconds: True the first time, then what NoCapacity says as `came`. With `degrade` any
        variant will do; without, another is used only if no worker has this one.

        For a session that has a slot already it is a takeover, which neither waits nor counts. One
        that knows its `epoch` says so, should Redis have lost its data.
        """
        since = ticket if isinstance(ticket, str) else "new" if ticket else ""
        limits = [key_id, key_limit, address, address_limit]
        fields = [item for pair in record.items() for item in pair]
        # A Redis that hung works off what it was asked: nobody would use the slots.
        until = time.monotonic() + ACQUIRE_S + self._clock if self._clock is not None else 0
        args = [session_id, lease_s, variant, avoid, *limits, since, int(degrade), epoch, until]
        try:
            async with asyncio.timeout(ACQUIRE_S):
                now, kind, *answer = await self._acquire(args=[*args, *fields])
        except TimeoutError:
            self.errors += 1
            raise RedisTimeoutError("Redis does not answer") from None
        self._clock = float(now) - time.monotonic()
        if _text(kind) == "late":
            raise RedisTimeoutError("Redis answers too late")
        if _text(kind) == "limit":
            raise TooMany("key" if _text(answer[0]) == "key" else "address")
        if _text(kind) == "none":
            reason, position, came = answer
            raise NoCapacity(_text(reason), int(position), _text(came))
        worker, endpoint, epoch = answer
        return Slot(session_id, _text(worker), _text(endpoint), int(epoch), key_id, address)

    async def leave(self, session_id: str) -> None:
        """Out of the line: nobody waits for this session's slot any more."""
        await self._leave(args=[session_id])

    async def renew(self, slots: Sequence[Slot], lease_s: float = LEASE_S) -> set[str]:
        """Keep the slots for another lease, and what the sessions are continued from for as long.

        Returns the sessions whose slot is ours no more. Slots that Redis has lost are taken again.
        """
        if not slots:
            return set()
        rows = [
            item
            for slot in slots
            for item in (slot.session_id, slot.epoch, slot.worker_id, slot.key_id, slot.address)
        ]
        return {_text(session) for session in await self._renew(args=[lease_s, *rows])}

    async def release(
        self, session_id: str, epoch: int, status: Literal["ended", "error"], audio_s: float = 0.0
    ) -> bool:
        """Give the slot back; False if it was given back before, or belongs to another epoch."""
        return bool(await self._release(args=[session_id, epoch, status, f"{audio_s:.3f}"]))

    async def expire(self) -> int:
        """End leases that ran out and mark silent workers offline; the number of slots freed so
        since it was last told, to any gateway."""
        return int(await self._expire(args=[]))

    async def keep(
        self,
        session_id: str,
        epoch: int,
        fields: Mapping[str, str],
        key_id: str = "",
        whole: bool = False,
    ) -> Literal["kept", "taken_over", "lost"]:
        """Keep for two minutes what the session is continued from, should its client come back.

        Fields add to those kept before, unless they are the `whole` of it: then there is a `config`
        among them, after every final. Nothing is written if another epoch has the session
        ("taken_over"), or if what they add to is not there ("lost").
        """
        rows, answer = list(fields.items()), "kept"
        for first in range(0, max(1, len(rows)), PART):
            begins = whole and not first
            part = [item for pair in rows[first : first + PART] for item in pair]
            answer = _text(await self._keep(args=[session_id, epoch, key_id, int(begins), *part]))
            if answer != "kept":
                break
        return answer  # pyright: ignore[reportReturnType]

    async def kept(self, session_id: str) -> dict[str, str] | None:
        """What was kept, and `key_id`; None if that was nothing, too long ago, or not all of it is
        written yet."""
        raw = await self._redis.hgetall(f"dalston:realtime:session:{session_id}:resume")
        fields = {_text(key): _text(value) for key, value in raw.items()}
        fields.pop("epoch", None)
        return fields if "config" in fields else None

    async def may_come_back(self) -> bool:
        """Whether gateways are perhaps still writing what Redis has lost: it has just begun."""
        about = await self._redis.info("server")
        return int(about["uptime_in_seconds"]) < WRITTEN_AGAIN_S

    # For workers.

    async def heartbeat(
        self, worker: Registration, sessions: Mapping[str, int], lease_s: float = LEASE_S
    ) -> None:
        """Register or stay registered, with the sessions being served and their epochs.

        Raises WorkerIdTaken if another living process, elsewhere, has the id.
        """
        fields: dict[str, str | int] = {
            "status": worker.status,
            "capacity": worker.capacity,
            "models": json.dumps(list(worker.models)),
            "models_loaded": json.dumps(list(worker.models_loaded)),
            "models_asleep": json.dumps(list(worker.asleep)),
            "languages_supported": json.dumps(list(worker.languages)),
            "version": worker.version,
        }
        if worker.gpu_memory_used:
            fields["gpu_memory_used"] = worker.gpu_memory_used
        if worker.gpu_memory_total:
            fields["gpu_memory_total"] = worker.gpu_memory_total
        answer = await self._heartbeat(
            args=[
                worker.worker_id,
                worker.instance,
                worker.endpoint,
                lease_s,
                len(sessions),
                *(item for pair in sessions.items() for item in pair),
                *(item for pair in fields.items() for item in pair),
            ]
        )
        if _text(answer) == "taken":
            raise WorkerIdTaken(
                f"another worker is registered as {worker.worker_id!r}: give each its own WORKER_ID"
            )

    async def unregister(self, worker_id: str, instance: str) -> None:
        await self._unregister(args=[worker_id, instance])

    async def announce(self, event: Mapping[str, str]) -> None:
        """Tell all gateways. It is a hint: a gateway that does not listen now never hears it."""
        await self._redis.publish(EVENTS, json.dumps(event))

    async def follow(
        self,
        connected: Callable[[], Awaitable[object]],
        on_event: Callable[[Mapping[str, str]], Awaitable[object]] | None = None,
    ) -> None:
        """Listen for ever: `on_event` is called with each event, `connected` whenever Redis is
        reached.

        That is at first, and after each time it was away; it may have lost all it knew. A call
        that fails with a RedisError is made again. Raises UnsupportedRedis.
        """
        lost = False
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(EVENTS)
                    async for item in channel.listen():
                        if item["type"] == "subscribe":
                            await refuse_cluster(self._redis)
                            await connected()
                            lost = False
                        elif item["type"] == "message" and on_event:
                            if event := _event(item["data"]):
                                await on_event(event)
            except RedisError as error:
                if not lost:
                    logger.warning("Redis: %s", error)
                lost = True
                await asyncio.sleep(AGAIN_S)

    # For people.

    async def workers(self) -> list[WorkerRecord]:
        """Every worker on record, by id."""
        records = list[WorkerRecord]()
        ids = sorted(_text(id) for id in await self._redis.smembers("dalston:realtime:workers"))
        for id in ids:
            raw = await self._redis.hgetall(f"dalston:realtime:worker:{id}")
            fields = {_text(key): _text(value) for key, value in raw.items()}
            if "status" not in fields:
                continue  # its record ran out; expire() removes the id
            records.append(
                WorkerRecord(
                    id,
                    fields["status"],  # pyright: ignore[reportArgumentType]
                    int(fields["capacity"]),
                    int(fields.get("active_sessions", 0)),
                    fields["endpoint"],
                    json.loads(fields["models"]),
                    float(fields.get("heartbeat_at", 0.0)),
                    json.loads(fields.get("models_asleep", "[]")),
                )
            )
        return records

    async def now(self) -> float:
        """Redis's clock, in seconds of the epoch."""
        seconds, microseconds = await self._redis.time()
        return seconds + microseconds / 1e6

    async def waiting(self) -> int:
        """How many sessions are in line."""
        return int(await self._redis.zcount("dalston:realtime:tickets", await self.now(), "+inf"))

    async def is_active(self, session_id: str) -> bool:
        return bool(await self._redis.sismember("dalston:realtime:sessions:active", session_id))

    async def sessions_of(self, key_id: str) -> list[str]:
        """The active sessions of an API key."""
        ids = await self._redis.sinter(
            f"dalston:realtime:key:{key_id}:sessions", "dalston:realtime:sessions:active"
        )
        return sorted(map(_text, ids))

    async def say_ending(self, session_id: str) -> None:
        """Tell whoever wants a session ended that its gateway has heard of it."""
        await self._redis.set(f"dalston:realtime:session:{session_id}:ending", 1, ex=LEASE_S)

    async def is_ending(self, session_id: str) -> bool:
        return bool(await self._redis.exists(f"dalston:realtime:session:{session_id}:ending"))

    async def discard(self, session_id: str) -> None:
        """End the record of a session that nobody serves, and all it could be continued from."""
        epoch = await self._redis.hget(f"dalston:realtime:session:{session_id}", "epoch")
        if epoch is not None:
            await self.release(session_id, int(epoch), "ended")
        await self._redis.delete(f"dalston:realtime:session:{session_id}:resume")

    async def sessions(self) -> list[dict[str, str]]:
        """The record of every active session."""
        ids = sorted(
            _text(id) for id in await self._redis.smembers("dalston:realtime:sessions:active")
        )
        found = list[dict[str, str]]()
        for id in ids:
            raw = await self._redis.hgetall(f"dalston:realtime:session:{id}")
            found.append(
                {"session_id": id} | {_text(key): _text(value) for key, value in raw.items()}
            )
        return found
