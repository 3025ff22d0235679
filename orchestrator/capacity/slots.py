"""
Which workers have room: workers, their slots and the sessions in them, in Redis.

Each operation is one Lua script (lua/*.lua), so it happens whole or not at all, whoever else is
at work. A slot is held by a lease: a gateway renews the leases of its sessions, and those of a
gateway that died come back by themselves. Epochs tell takeovers apart: the second worker of a
session has epoch 2, and what the first still says is ignored. Who finds no slot can wait in a line
that all gateways share.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, TypeVar

import redis.asyncio
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dalston.orchestrator.capacity.foreign import PREFIX, delete_foreign
from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.capacity.server import Server
from dalston.orchestrator.capacity.workers import Registration, Served, WorkerRecord, record

__all__ = ["redis_client"]  # a client is what Slots are made of

T = TypeVar("T")

LEASE_S = 30  # how long a slot outlives its owner
KEPT_S = 120  # how long a client may take to come back to its session
ACQUIRE_S = 2.0  # a caller is told so soon that Redis does not answer
PART = (
    1_000  # fields that are written at once: it takes Redis about 2 ms, in which nobody is answered
)
HEARTBEAT_S = 10
STALE_S = 3 * HEARTBEAT_S  # without one a worker is offline (STALE in prelude.lua)

Strategy = Literal["least_loaded", "round_robin", "weighted"]


@dataclass(frozen=True)
class Slot:
    session_id: str
    worker_id: str
    endpoint: str  # ws://host:port
    epoch: int
    # Whose limits the session counts for; told again with each renewal.
    key_id: str = ""
    address: str = ""
    variant: str = ""  # that it is given for: the smaller one, if the session was degraded
    partner: "Slot | None" = None  # that was given with it, for the other channel of a connection


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
    """Another process has registered under this worker id, and was alive a moment ago."""

    def __init__(self, worker_id: str, instance: str, endpoint: str):
        sentence = f"another worker is registered as {worker_id!r}: give each its own WORKER_ID"
        super().__init__(sentence)
        self.instance, self.endpoint = instance, endpoint


def _resume_key(session_id: str) -> str:
    return f"{PREFIX}session:{session_id}:resume"


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Slots:
    """All operations raise redis.RedisError when Redis cannot be reached."""

    def __init__(
        self,
        client: "redis.asyncio.Redis",
        strategy: Strategy = "least_loaded",
        kept_s: float = KEPT_S,
    ):
        """strategy: by which workers are chosen. kept_s: for a client to come back in."""
        self._redis: Any = client
        self._strategy, self._kept_s = strategy, math.ceil(kept_s)
        self._clock: float | None = None  # Redis's, ahead of ours
        self._mending = asyncio.Lock()
        self.server = Server(client)
        self.errors = 0  # operations that failed
        folder = files("dalston.orchestrator.capacity") / "lua"
        prelude = (folder / "prelude.lua").read_text()

        def script(name: str) -> Any:
            run = self._redis.register_script(prelude + (folder / f"{name}.lua").read_text())

            async def counted(args: list[Any]) -> Any:
                try:
                    return await self._sound(lambda: run(args=args))
                except RedisError:
                    self.errors += 1
                    raise

            return counted

        self._acquire, self._renew = script("acquire"), script("renew")
        self._release, self._expire = script("release"), script("expire")
        self._keep, self._leave = script("keep"), script("leave")
        self._heartbeat, self._unregister = script("heartbeat"), script("unregister")

    async def _sound(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer; once more if a key of ours holds what others have put there."""
        try:
            return await ask()
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
        async with self._mending:
            await delete_foreign(self._redis)
        return await ask()

    async def _hash(self, key: str) -> dict[str, str]:
        raw = await self._sound(lambda: self._redis.hgetall(key))
        return {_text(field): _text(value) for field, value in raw.items()}

    async def _hashes(self, prefix: str, ids: list[str]) -> dict[str, dict[str, str]]:
        """By id; of many at once."""
        found = dict[str, dict[str, str]]()
        for first in range(0, len(ids), PART):
            part = ids[first : first + PART]

            async def ask(part: list[str] = part) -> list[dict[bytes, bytes]]:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for id in part:
                        pipeline.hgetall(f"{prefix}{id}")
                    return await pipeline.execute()

            for id, raw in zip(part, await self._sound(ask), strict=True):
                found[id] = {_text(field): _text(value) for field, value in raw.items()}
        return found

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
        partner: str = "",
    ) -> Slot:
        """A slot of a worker with the variant; `record` is kept with the session.

        Raises NoCapacity, also where others in line would take the free slots, and TooMany. With a
        `ticket` the session stands in line itself, for as long as it asks again within five
        seconds: True the first time, then what NoCapacity says as `came`. With `degrade` the
        smaller variant will do; without, another is used only if no worker has this one.

        For a session that has a slot already it is a takeover, which neither waits nor counts. One
        that knows its `epoch` says so, should Redis have lost its data. A `partner` is another
        session that is given a slot at the same moment, or neither is.
        """
        since = ticket if isinstance(ticket, str) else "new" if ticket else ""
        limits = [key_id, key_limit, address, address_limit]
        fields = [item for pair in record.items() for item in pair]
        args = [session_id, lease_s, variant, avoid, *limits, since, int(degrade), epoch]
        kind, *answer = await self._answer_in_time(args, partner, fields)
        if _text(kind) == "limit":
            raise TooMany("key" if _text(answer[0]) == "key" else "address")
        if _text(kind) == "none":
            reason, position, came = answer
            raise NoCapacity(_text(reason), int(position), _text(came))
        granted = _text(answer[0])

        def slot(session: str, given: list[Any], partner: Slot | None = None) -> Slot:
            worker, endpoint, epoch = _text(given[0]), _text(given[1]), int(given[2])
            return Slot(session, worker, endpoint, epoch, key_id, address, granted, partner)

        return slot(session_id, answer[1:4], slot(partner, answer[4:]) if partner else None)

    async def _answer_in_time(self, args: list[Any], partner: str, fields: list[Any]) -> list[Any]:
        """What acquire.lua answers. A Redis that hung works off what it was asked, and nobody would
        use the slots: it is told until when somebody waits."""
        for _ in range(2):
            until = time.monotonic() + ACQUIRE_S + self._clock if self._clock is not None else 0
            try:
                async with asyncio.timeout(ACQUIRE_S):
                    asked = [*args, until, self._strategy, partner, *fields]
                    now, *answer = await self._acquire(args=asked)
            except TimeoutError:
                self.errors += 1
                raise RedisTimeoutError("Redis does not answer") from None
            self._clock = float(now) - time.monotonic()
            if _text(answer[0]) != "late":
                return answer
            # Too late by Redis's clock, and in time by ours: one of them was set. Now we know it.
        raise RedisTimeoutError("Redis answers too late")

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
            for item in (
                slot.session_id,
                slot.epoch,
                slot.worker_id,
                slot.variant,
                slot.key_id,
                slot.address,
            )
        ]
        lost = await self._renew(args=[lease_s, self._kept_s, *rows])
        return {_text(session) for session in lost}

    async def release(
        self,
        session_id: str,
        epoch: int,
        status: Literal["ended", "error"],
        audio_s: float = 0.0,
        **about: str,
    ) -> bool:
        """Give the slot back; False if it was given back before, or belongs to another epoch. What
        is known `about` the session in the end is kept in its record."""
        fields = {"audio_duration": f"{audio_s:.3f}", **about}
        rows = [item for pair in fields.items() for item in pair]
        return bool(await self._release(args=[session_id, epoch, status, *rows]))

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
        before: int = 0,
    ) -> Literal["kept", "taken_over", "lost"]:
        """Keep for a while what the session is continued from, should its client come back.

        Fields add to those kept before, of which there are so many at least, unless they are the
        `whole` of it: then there is a `config` among them, after every final. Nothing is written if
        another epoch has the session ("taken_over"), or if what they add to is not all there
        ("lost").
        """
        rows, answer = list(fields.items()), "kept"
        for first in range(0, max(1, len(rows)), PART):
            part = [item for pair in rows[first : first + PART] for item in pair]
            adds_to = "" if whole and not first else before + (first if whole else 0)
            args = [session_id, epoch, key_id, adds_to, self._kept_s, *part]
            answer = _text(await self._keep(args=args))
            if answer != "kept":
                break
        return answer  # pyright: ignore[reportReturnType]

    async def kept(self, session_id: str) -> dict[str, str] | None:
        """What was kept, and `key_id`; None if that was nothing, too long ago, or not all of it is
        written yet."""
        fields = await self._hash(_resume_key(session_id))
        fields.pop("epoch", None)
        return fields if "config" in fields else None

    async def forget(self, session_id: str) -> None:
        """Keep nothing any more of what the session would be continued from."""
        await self._redis.unlink(_resume_key(session_id))

    async def not_kept(self, session_ids: Sequence[str]) -> list[str]:
        """Those of which nothing is kept."""
        keys = [_resume_key(id) for id in session_ids]
        if not keys or await self._redis.exists(*keys) == len(keys):
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.exists(key)
            there = await pipeline.execute()
        return [id for id, found in zip(session_ids, there, strict=True) if not found]

    # For workers.

    async def heartbeat(
        self,
        worker: Registration,
        sessions: Mapping[str, Served],
        lease_s: float = LEASE_S,
        dead: str = "",
    ) -> None:
        """Register or stay registered, with the sessions being served. dead: an instance that lives
        no more.

        Raises WorkerIdTaken if another living process, elsewhere, has the id.
        """
        rows = [
            item
            for id, served in sessions.items()
            for item in (
                id,
                served.epoch,
                served.variant,
                served.language,
                f"{served.audio_s:.3f}",
            )
        ]
        answer = await self._heartbeat(
            args=[
                worker.worker_id,
                worker.instance,
                worker.endpoint,
                lease_s,
                worker.running_s,
                dead,
                len(sessions),
                *rows,
                *(item for pair in worker.fields().items() for item in pair),
            ]
        )
        told, *other = map(_text, answer)
        if told == "taken":
            raise WorkerIdTaken(worker.worker_id, *other)

    async def unregister(self, worker_id: str, instance: str) -> None:
        await self._unregister(args=[worker_id, instance])

    # For people.

    async def workers(self) -> list[WorkerRecord]:
        """Every worker on record, by id."""
        members = await self._sound(lambda: self._redis.smembers(f"{PREFIX}workers"))
        hashes = await self._hashes(f"{PREFIX}worker:", sorted(map(_text, members)))
        # One whose record ran out has none; expire() removes the id.
        records = [record(id, fields) for id, fields in hashes.items()]
        return [found for found in records if found]

    async def now(self) -> float:
        """Redis's clock, in seconds of the epoch."""
        seconds, microseconds = await self._redis.time()
        return seconds + microseconds / 1e6

    async def waiting(self) -> int:
        """How many sessions are in line."""
        now = await self.now()
        key = f"{PREFIX}tickets"
        return int(await self._sound(lambda: self._redis.zcount(key, now, "+inf")))

    async def sessions_of(self, key_id: str) -> list[str]:
        """The active sessions of an API key."""
        keys = f"{PREFIX}key:{key_id}:sessions", f"{PREFIX}sessions:active"
        ids = await self._sound(lambda: self._redis.sinter(*keys))
        return sorted(map(_text, ids))

    async def say_ending(self, session_id: str) -> None:
        """Tell whoever wants a session ended that its gateway has heard of it."""
        await self._redis.set(f"{PREFIX}session:{session_id}:ending", 1, ex=LEASE_S)

    async def is_ending(self, session_id: str) -> bool:
        return bool(await self._redis.exists(f"{PREFIX}session:{session_id}:ending"))

    async def discard(self, session_id: str) -> None:
        """End the record of a session that nobody serves, and all it could be continued from."""
        key = f"{PREFIX}session:{session_id}"
        epoch = await self._sound(lambda: self._redis.hget(key, "epoch"))
        if epoch is not None:
            await self.release(session_id, int(epoch), "ended")
        await self._redis.delete(_resume_key(session_id))

    async def sessions(self) -> list[dict[str, str]]:
        """The record of every active session."""
        key = f"{PREFIX}sessions:active"
        members = await self._sound(lambda: self._redis.smembers(key))
        hashes = await self._hashes(f"{PREFIX}session:", sorted(map(_text, members)))
        return [{"session_id": id} | fields for id, fields in hashes.items()]

    async def is_active(self, session_id: str) -> bool:
        """Whether a session has a slot."""
        key = f"{PREFIX}sessions:active"
        return bool(await self._sound(lambda: self._redis.sismember(key, session_id)))
