"""
Who has room: workers, their slots and the sessions in them, in Redis.

Each operation is one Lua script (lua/*.lua), so it happens whole or not at all, whoever else is
at work. A slot is held by a lease: a gateway renews the leases of its sessions, and those of a
gateway that died come back by themselves. Epochs tell takeovers apart: the second worker of a
session has epoch 2, and what the first still says is ignored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import redis.asyncio

EVENTS = "dalston:realtime:events"
LEASE_S = 30  # how long a slot outlives its owner
CONNECTIONS = 16  # of one process; an operation takes a fraction of a millisecond
HEARTBEAT_S = 10  # a worker is offline after three of them (STALE in prelude.lua)

Status = Literal["ready", "busy", "draining", "offline"]


@dataclass(frozen=True)
class Slot:
    session_id: str
    worker_id: str
    endpoint: str  # ws://host:port
    epoch: int


class NoCapacity(Exception):
    """There is no slot. `reason`: no_workers, draining or full."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


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
    models_loaded: Sequence[str]  # checkpoints
    languages: Sequence[str]
    version: str
    gpu_memory_used: str | None = None  # "4.2GB"; absent without a GPU
    gpu_memory_total: str | None = None


@dataclass(frozen=True)
class WorkerRecord:
    worker_id: str
    status: Status
    capacity: int
    active_sessions: int
    endpoint: str
    models: list[str]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def redis_client(url: str) -> "redis.asyncio.Redis":
    """A client whose callers wait for one of a few connections; the default refuses them."""
    pool: Any = redis.asyncio.BlockingConnectionPool
    pool = pool.from_url(
        url, max_connections=CONNECTIONS, timeout=5, socket_timeout=5, socket_connect_timeout=2
    )
    return redis.asyncio.Redis.from_pool(pool)


class Slots:
    """All operations raise redis.RedisError when Redis cannot be reached."""

    def __init__(self, client: "redis.asyncio.Redis"):
        self._redis: Any = client
        folder = files("dalston.orchestrator") / "lua"
        prelude = (folder / "prelude.lua").read_text()

        def script(name: str) -> Any:
            return self._redis.register_script(prelude + (folder / f"{name}.lua").read_text())

        self._acquire, self._renew = script("acquire"), script("renew")
        self._release, self._expire = script("release"), script("expire")
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
    ) -> Slot:
        """A slot of the least loaded worker; `record` is kept with the session.

        For a session that has a slot already it is a takeover. Raises NoCapacity.
        """
        fields = [item for pair in record.items() for item in pair]
        answer = await self._acquire(args=[session_id, lease_s, variant, avoid, *fields])
        if len(answer) == 1:
            raise NoCapacity(_text(answer[0]))
        worker, endpoint, epoch = answer
        return Slot(session_id, _text(worker), _text(endpoint), int(epoch))

    async def renew(self, slots: Sequence[Slot], lease_s: float = LEASE_S) -> set[str]:
        """Keep the slots for another lease. Returns the sessions whose slot is ours no more."""
        if not slots:
            return set()
        pairs = [item for slot in slots for item in (slot.session_id, slot.epoch)]
        return {_text(session) for session in await self._renew(args=[lease_s, *pairs])}

    async def release(
        self, session_id: str, epoch: int, status: Literal["ended", "error"], audio_s: float = 0.0
    ) -> bool:
        """Give the slot back; False if it was given back before, or belongs to another epoch."""
        return bool(await self._release(args=[session_id, epoch, status, f"{audio_s:.3f}"]))

    async def expire(self) -> int:
        """End leases that ran out and mark silent workers offline; the number of slots freed."""
        return int(await self._expire(args=[]))

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
        """Tell all gateways. A hint: who does not listen at the moment never hears it."""
        await self._redis.publish(EVENTS, json.dumps(event))

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
                )
            )
        return records

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
