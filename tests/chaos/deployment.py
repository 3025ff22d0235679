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
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import redis.asyncio
from support.proxy import Proxy

from dalston.cli.up import Part, redis_server
from dalston.triton.process import free_port

Role = Literal["gateway", "worker", "triton", "redis"]
Link = Literal["client-gateway", "gateway-worker", "worker-triton", "redis"]

ROOT = Path(__file__).resolve().parents[2]
RESTART_S = 0.5  # as `dalston up` waits
STARTING_S = 120.0
DRAIN_S = 3.0
_MARK = "DALSTON_CHAOS"
_INSTANT = ROOT / "bench" / "instant.py"
_MODELS = ("silero_vad", "whisper_fast", "whisper_accurate")


@dataclass(frozen=True)
class Size:
    gateways: int = 2
    workers: int = 2
    tritons: int = 2
    sessions: int = 32  # of a worker
    instant: bool = False  # no models: what bench/instant.py says
    gateway: Mapping[str, str] = field(default_factory=dict[str, str])  # settings of gateways
    repository: Path = ROOT / "build" / "model_repository"


@dataclass
class Member:
    """One process of the deployment, and where it is reached past every proxy."""

    role: Role
    part: Part
    port: int  # HTTP, but of Redis
    down_s: float = RESTART_S  # before it is started again
    pids: set[int] = field(default_factory=set[int])

    @property
    def running(self) -> bool:
        return self.part.process is not None and self.part.process.returncode is None

    @property
    def pid(self) -> int:
        assert self.part.process
        return self.part.process.pid


@dataclass
class Deployment:
    folder: Path  # logs and Redis' data
    size: Size
    members: dict[str, Member] = field(default_factory=dict[str, Member])
    # By who connects and to whom: "client>gateway-1", "worker-1>triton-2", "gateway-1>redis"...
    links: dict[str, Proxy] = field(default_factory=dict[str, Proxy])
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    _redis: Any = None
    _keeping: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

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

    @property
    def urls(self) -> list[str]:
        """Where clients reach the gateways."""
        return [f"ws://127.0.0.1:{proxy.port}" for _, proxy in self.link("client-gateway")]

    @property
    def redis(self) -> Any:
        """A client past every proxy, for looking."""
        if self._redis is None:
            url = f"redis://127.0.0.1:{self.members['redis'].port}"
            self._redis = redis.asyncio.from_url(url, socket_timeout=2, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]
        return self._redis

    def processes(self) -> list[psutil.Process]:
        """All that carry our mark, children's children too."""
        found = list[psutil.Process]()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(_MARK) == self.mark:
                    found.append(process)
        return found

    def shared_memory(self) -> set[str]:
        """Segments of our Tritons, of those that died too."""
        pids = {pid for member in self.of("triton") for pid in member.pids}
        names = (path.name for path in Path("/dev/shm").glob("dalston_*"))
        return {name for name in names if int(name.split("_")[1]) in pids}

    async def well(self, member: Member) -> bool:
        """Whether it would serve now."""
        if not member.running:
            return False
        match member.role:
            case "redis":
                try:
                    return bool(await self.redis.ping())
                except (redis.asyncio.RedisError, OSError):
                    return False
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
        status = await asyncio.to_thread(_json, self.of("gateway")[0], "/v1/realtime/status")
        workers: list[Any] = status.get("workers", [])
        return [worker["id"] for worker in workers if worker["status"] in ("ready", "busy")]

    async def until_ready(self, seconds: float = STARTING_S) -> None:
        """Until all are well and registered. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            await self.until_well(list(self.members.values()))
            while len(await self.registered()) < self.size.workers:
                await asyncio.sleep(0.05)

    async def keep(self, member: Member) -> None:
        while True:
            await member.part.start()
            assert member.part.process
            member.pids.add(member.pid)
            await member.part.process.wait()
            await asyncio.sleep(member.down_s)
            member.down_s = RESTART_S

    async def start(self) -> None:
        for proxy in self.links.values():
            await proxy.open()
        for member in _members(self):
            self.members[member.part.name] = member
        self._keeping = [asyncio.create_task(self.keep(m)) for m in self.members.values()]
        await self.until_ready()

    async def stop(self) -> None:
        """In the order of `dalston up`."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()
        for member in self.members.values():
            if member.running:
                member.part.process.send_signal(signal.SIGCONT)  # pyright: ignore[reportOptionalMemberAccess]
        for role in ("gateway", "worker", "triton", "redis"):
            await asyncio.gather(*(member.part.stop() for member in self.of(role)))
        for proxy in self.links.values():
            await proxy.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _json(member: Member, path: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{member.port}{path}", timeout=2) as got:
            return json.load(got)
    except (urllib.error.URLError, OSError):
        return {}


def _members(deployment: Deployment) -> list[Member]:
    """In the order they are started; their proxies are open."""
    links, folder, size = deployment.links, deployment.folder, deployment.size
    dalston = [sys.executable, "-m", "dalston.cli.main"]
    ports = {name: free_port() for name in _names(size)}

    def member(
        name: str, role: Role, port: int, command: list[str], stop_s: float, **environment: str
    ) -> Member:
        environment |= {_MARK: deployment.mark}
        if role in ("gateway", "worker"):
            environment["REDIS_URL"] = f"redis://127.0.0.1:{links[f'{name}>redis'].port}"
            environment |= {"DALSTON_HOST": "127.0.0.1", "DRAIN_SECONDS": str(DRAIN_S)}
        return Member(role, Part(name, command, environment, folder / f"{name}.log", stop_s), port)

    data = folder / "redis"
    data.mkdir(parents=True, exist_ok=True)
    redis = [redis_server(), "--port", str(ports["redis"]), "--bind", "127.0.0.1"]
    redis += ["--dir", str(data), "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    members = [member("redis", "redis", ports["redis"], redis, 3)]
    for number in range(1, size.tritons + 1):
        name, run = f"triton-{number}", folder / f"triton-{number}"
        run.mkdir(exist_ok=True)
        command = [*dalston, "triton", "--repository", str(size.repository), "--run-dir", str(run)]
        command += ["--grpc-port", str(free_port()), "--http-port", str(ports[name])]
        command += ["--metrics-port", str(free_port())]
        if size.instant:
            command = [sys.executable, str(_INSTANT), str(ports[name])]
        members.append(member(name, "triton", ports[name], command, 8))
    for number in range(1, size.workers + 1):
        name = f"worker-{number}"
        tritons = [links[f"{name}>triton-{other}"].port for other in range(1, size.tritons + 1)]
        members.append(
            member(
                *(name, "worker", ports[name], [*dalston, "worker"], DRAIN_S + 8),
                WORKER_ID=name,
                WORKER_PORT=str(ports[name]),
                WORKER_ENDPOINT=f"ws://127.0.0.1:{links[f'gateway>{name}'].port}",
                MAX_SESSIONS=str(size.sessions),
                DALSTON_HEARTBEAT_SECONDS="2",
                TRITON_URLS=",".join(f"127.0.0.1:{port}" for port in tritons),
            )
        )
    for number in range(1, size.gateways + 1):
        name = f"gateway-{number}"
        environment = {"DALSTON_PORT": str(ports[name]), **size.gateway}
        command = [*dalston, "gateway"]
        members.append(member(name, "gateway", ports[name], command, DRAIN_S + 8, **environment))
    for name, proxy in links.items():
        proxy.target = ports[name.partition(">")[2]]
    return members


def _names(size: Size) -> list[str]:
    counts = {"gateway": size.gateways, "worker": size.workers, "triton": size.tritons}
    numbered = [f"{role}-{n}" for role, count in counts.items() for n in range(1, count + 1)]
    return [*numbered, "redis"]


def _connections(size: Size) -> list[str]:
    """Who connects to whom. All gateways reach a worker under one address."""
    names = _names(size)
    gateways, workers, tritons = (
        [name for name in names if name.startswith(role)] for role in ("gateway", "worker", "trit")
    )
    return [
        *(f"client>{gateway}" for gateway in gateways),
        *(f"gateway>{worker}" for worker in workers),
        *(f"{worker}>{triton}" for worker in workers for triton in tritons),
        *(f"{name}>redis" for name in [*gateways, *workers]),
    ]


@asynccontextmanager
async def deployed(folder: Path, size: Size | None = None) -> AsyncGenerator[Deployment]:
    """A deployment that serves; its files go to `folder`, which is emptied first."""
    size = size or Size()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)  # noqa: ASYNC240
    deployment = Deployment(folder, size, links={name: Proxy() for name in _connections(size)})
    try:
        await deployment.start()
        yield deployment
    finally:
        await deployment.stop()
