"""
The real stack as several machines would run it: gateways, workers, Tritons and a Redis, a process
each, with a proxy on every connection between two of them. One that dies is started again.

What each process leaves behind is known by a mark in its environment, which its children inherit.
"""

import asyncio
import contextlib
import json
import secrets
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import redis.asyncio
from door import Door
from members import MARK, RESTART_S, ROOT, SERVICE, Member, Role, Site, Size
from protection import Protection
from redis.exceptions import RedisError
from support.proxy import Proxy

__all__ = ["ROOT", "Deployment", "Member", "Role", "Size", "deployed"]

Link = Literal["client-gateway", "gateway-worker", "worker-triton", "redis"]

STARTING_S = 120.0
LOOK_S = 0.3  # at which Redis is the master
_MODELS = ("silero_vad", "whisper_fast", "whisper_accurate")


@dataclass
class Deployment:
    folder: Path  # logs and Redis' data
    size: Size
    members: dict[str, Member] = field(default_factory=dict[str, Member])
    # By who connects and to whom: "client>gateway-1", "worker-1>triton-2", "any>redis-1"...
    links: dict[str, Proxy] = field(default_factory=dict[str, Proxy])
    fronts: dict[str, Proxy] = field(default_factory=dict[str, Proxy])  # ours that end TLS
    protection: Protection | None = None
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    # When Redis may have lost what was written last (time.monotonic).
    forgot: list[float] = field(default_factory=list[float])
    _clients: dict[str, Any] = field(default_factory=dict[str, Any])
    _over: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    def of(self, role: Role) -> list[Member]:
        return [member for member in self.members.values() if member.role == role]

    def link(self, kind: Link) -> list[tuple[str, Proxy]]:
        """The connections of a kind, in an order that never changes."""
        near, _, far = kind.rpartition("-")
        return [
            (name, proxy)
            for name, proxy in sorted(self.links.items())
            if name.startswith(near) and name.partition(">")[2].startswith(far)
        ]

    def door(self, key: str = "") -> Door:
        """Where clients reach the gateways."""
        ports = [proxy.port for _, proxy in self.link("client-gateway")]
        if self.protection is None:
            return Door([f"ws://127.0.0.1:{port}" for port in ports])
        tls = self.protection.certificate.client
        return Door([f"wss://127.0.0.1:{port}" for port in ports], key, tls)

    @property
    def urls(self) -> list[str]:
        """Where clients reach the gateways."""
        return list(self.door().urls)

    @property
    def free_key(self) -> str:
        """One without a quota."""
        return self.protection.free if self.protection else ""

    def processes(self) -> list[psutil.Process]:
        """All that carry our mark, children's children too."""
        found = list[psutil.Process]()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def shared_memory(self) -> set[str]:
        """Segments of our Tritons, of those that died too."""
        pids = {pid for member in self.of("triton") for pid in member.pids}
        names = (path.name for path in Path("/dev/shm").glob("dalston_*"))
        return {name for name in names if int(name.split("_")[1]) in pids}

    # Redis.

    def redis_of(self, member: Member) -> Any:
        """A client of one Redis, or one Sentinel, past every proxy, for looking."""
        name = member.part.name
        if name not in self._clients:
            closed = self.protection and member.role == "redis"
            self._clients[name] = redis.asyncio.Redis(
                port=member.port,
                password=self.protection.redis_password if self.protection and closed else None,
                socket_timeout=2,
                decode_responses=True,
            )
        return self._clients[name]

    async def master(self) -> Member:
        """The Redis that has the slots now. Raises RedisError and OSError."""
        for sentinel in self.of("sentinel"):
            with contextlib.suppress(RedisError, OSError):
                asked = self.redis_of(sentinel).sentinel_get_master_addr_by_name(SERVICE)
                _, port = await asked
                found = [name for name, link in self.link("redis") if link.port == int(port)]
                return self.members[found[0].partition(">")[2]]
        if self.size.sentinels:
            raise RedisError("no Sentinel answers")
        return self.members["redis-1"]

    async def redis(self) -> Any:
        """A client of the master, past every proxy. Raises RedisError and OSError."""
        return self.redis_of(await self.master())

    async def _redis_well(self, member: Member) -> bool:
        try:
            about = await self.redis_of(member).info("replication")
            if (await self.master()) is member:
                return about["role"] == "master"
        except (RedisError, OSError):
            return False
        return about["role"] == "slave" and about["master_link_status"] == "up"

    async def _watch(self, member: Member) -> None:
        """One that becomes a master lacks what the other was told last; one that has to follow
        forgets what it was told since."""
        role = ""
        while not self._over:  # redis-py may swallow that this is cancelled
            with contextlib.suppress(RedisError, OSError):
                now = (await self.redis_of(member).info("replication"))["role"]
                if role and now != role:
                    self.forgot.append(time.monotonic())
                role = now
            await asyncio.sleep(LOOK_S)

    # Whether it works.

    async def well(self, member: Member) -> bool:
        """Whether it would serve now."""
        if not member.running:
            return False
        match member.role:
            case "redis":
                return await self._redis_well(member)
            case "sentinel":
                try:
                    return bool(await self.redis_of(member).ping())
                except (RedisError, OSError):
                    return False
            case "front":
                return True
            case "triton":
                if self.size.instant:
                    return True
                paths = [f"/v2/models/{model}/ready" for model in _MODELS]
            case _:
                paths = ["/health"]
        base = f"http://127.0.0.1:{member.port}"
        return all([await asyncio.to_thread(_answers, base + path) for path in paths])

    async def until_well(self, members: list[Member], seconds: float = STARTING_S) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            for member in members:
                while not await self.well(member):
                    await asyncio.sleep(0.05)

    async def registered(self) -> list[str]:
        """The workers that take sessions."""
        url = f"http://127.0.0.1:{self.of('gateway')[0].port}/v1/realtime/status"
        status = await asyncio.to_thread(_json, url, self.free_key)
        workers: list[Any] = status.get("workers", [])
        return [worker["id"] for worker in workers if worker["status"] in ("ready", "busy")]

    async def until_ready(self, seconds: float = STARTING_S) -> None:
        """Until all are well and registered. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            await self.until_well(list(self.members.values()))
            while len(await self.registered()) < self.size.workers:
                await asyncio.sleep(0.05)

    # Its life.

    async def keep(self, member: Member) -> None:
        while True:
            await member.part.start()
            assert member.part.process
            member.pids.add(member.pid)
            await member.part.process.wait()
            await asyncio.sleep(member.down_s)
            member.down_s = RESTART_S

    async def start(self) -> None:
        size = self.size
        if size.callers:
            self.protection = await Protection.made(self.folder, size.callers)
        if self.protection and not size.haproxy:
            gateways = [name for name in size.names() if name.startswith("gateway")]
            server = self.protection.certificate.server
            self.fronts = {name: Proxy(tls=server) for name in gateways}
        self.links = {name: Proxy() for name in size.connections()}
        for proxy in (*self.links.values(), *self.fronts.values()):
            await proxy.open()
        site = Site(self.folder, size, self.mark, self.links, self.fronts, self.protection)
        self.members = {member.part.name: member for member in site.members()}
        self._tasks = [asyncio.create_task(self.keep(m)) for m in self.members.values()]
        await self.until_ready()
        if size.sentinels:
            self._tasks += [asyncio.create_task(self._watch(m)) for m in self.of("redis")]

    async def stop(self) -> None:
        """In the order of `dalston up`."""
        self._over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()
        for member in self.members.values():
            if member.running:
                member.part.process.send_signal(signal.SIGCONT)  # pyright: ignore[reportOptionalMemberAccess]
        for role in ("front", "gateway", "worker", "triton", "sentinel", "redis"):
            await asyncio.gather(*(member.part.stop() for member in self.of(role)))
        for proxy in (*self.links.values(), *self.fronts.values()):
            await proxy.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _json(url: str, key: str) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"X-API-Key": key} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=2) as got:
            return json.load(got)
    except (urllib.error.URLError, OSError):
        return {}


@asynccontextmanager
async def deployed(folder: Path, size: Size | None = None) -> AsyncGenerator[Deployment]:
    """A deployment that serves; its files go to `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)  # noqa: ASYNC240
    deployment = Deployment(folder, size or Size())
    try:
        await deployment.start()
        yield deployment
    finally:
        await deployment.stop()
