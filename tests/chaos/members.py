"""
The processes of a deployment: what each is started with, and who connects to whom.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from protection import Protection, haproxy
from support import hardships
from support.proxy import Proxy

from dalston.cli.up import Part, redis_server
from dalston.triton.process import free_port

Role = Literal["gateway", "worker", "triton", "redis", "sentinel", "front"]

ROOT = Path(__file__).resolve().parents[2]
RESTART_S = 0.5  # as `dalston up` waits
DRAIN_S = 3.0
MARK = "DALSTON_CHAOS"
SERVICE = "dalston"  # what Sentinels call the Redis that they watch
SILENT_MS = 2000  # until they take one for dead
_INSTANT = ROOT / "bench" / "instant.py"
_DALSTON = [sys.executable, "-m", "dalston.cli.main"]


@dataclass(frozen=True)
class Size:
    gateways: int = 2
    workers: int = 2
    tritons: int = 2
    sessions: int = 32  # of a worker
    sentinels: int = 0  # any: two Redis, one of which follows the other
    callers: int = 0  # any: it is closed, with keys and TLS, and they share the keys
    haproxy: bool = False  # ends TLS; else we do it
    clocks: bool = False  # can be set: needs libfaketime
    instant: bool = False  # no models: what bench/instant.py says
    gateway: Mapping[str, str] = field(default_factory=dict[str, str])  # settings of gateways
    repository: Path = ROOT / "build" / "model_repository"

    def names(self) -> list[str]:
        """Of all processes, in the order they are started."""
        counts: dict[Role, int] = {
            "redis": 2 if self.sentinels else 1,
            "sentinel": self.sentinels,
            "triton": self.tritons,
            "worker": self.workers,
            "gateway": self.gateways,
            "front": int(self.haproxy),
        }
        return [f"{role}-{n}" for role, count in counts.items() for n in range(1, count + 1)]

    def connections(self) -> list[str]:
        """Who connects to whom. All gateways reach a worker under one address; so does everybody a
        Redis, as Sentinels tell it."""
        names = self.names()
        gateways, workers, tritons, redis = (
            [name for name in names if name.startswith(f"{role}-")]
            for role in ("gateway", "worker", "triton", "redis")
        )
        return [
            *(f"client>{gateway}" for gateway in gateways),
            *(f"gateway>{worker}" for worker in workers),
            *(f"{worker}>{triton}" for worker in workers for triton in tritons),
            *(f"any>{one}" for one in redis),
        ]


@dataclass
class Member:
    """One process of the deployment, and where it is reached past every proxy."""

    role: Role
    part: Part
    port: int  # HTTP, but of Redis and Sentinels
    clock: Path | None = None  # hardships.set_clock
    down_s: float = RESTART_S  # before it is started again
    pids: set[int] = field(default_factory=set[int])

    @property
    def running(self) -> bool:
        return self.part.process is not None and self.part.process.returncode is None

    @property
    def pid(self) -> int:
        assert self.part.process
        return self.part.process.pid


@dataclass(frozen=True)
class Site:
    """What all processes of a deployment have in common. `links` are open."""

    folder: Path
    size: Size
    mark: str
    links: Mapping[str, Proxy]
    fronts: Mapping[str, Proxy]  # by gateway: what ends TLS
    protection: Protection | None

    def members(self) -> list[Member]:
        """In the order they are started."""
        ports = {name: free_port() for name in self.size.names()}
        members = [self._member(name, ports) for name in ports if not name.startswith("front")]
        for name, proxy in self.links.items():
            proxy.target = ports[name.partition(">")[2]]
        for gateway, front in self.fronts.items():
            front.target = ports[gateway]
            self.links[f"client>{gateway}"].target = front.port
        if self.size.haproxy:
            members.append(self._haproxy(ports))
        return members

    def _member(self, name: str, ports: Mapping[str, int]) -> Member:
        role: Role = name.partition("-")[0]  # pyright: ignore[reportAssignmentType]
        match role:
            case "redis":
                return self._part(role, name, ports[name], self._redis(name, ports[name]), 3)
            case "sentinel":
                return self._part(role, name, ports[name], self._sentinel(name, ports[name]), 3)
            case "triton":
                return self._part(role, name, ports[name], self._triton(name, ports[name]), 8)
            case _:
                environment = self._settings(name, ports)
                environment |= {"DALSTON_HOST": "127.0.0.1", "DRAIN_SECONDS": str(DRAIN_S)}
                environment["REDIS_URL"] = self._redis_url(ports)
                command = [*_DALSTON, role]
                return self._part(role, name, ports[name], command, DRAIN_S + 8, environment)

    def _part(
        self,
        role: Role,
        name: str,
        port: int,
        command: list[str],
        stop_s: float,
        environment: dict[str, str] | None = None,
    ) -> Member:
        environment = (environment or {}) | {MARK: self.mark}
        clock, library = None, hardships.fake_time() if self.size.clocks else None
        if library and role in ("gateway", "worker", "redis"):
            clock = self.folder / f"{name}.clock"
            environment |= hardships.with_clock(library, clock)
        part = Part(name, command, environment, self.folder / f"{name}.log", stop_s)
        return Member(role, part, port, clock)

    def _settings(self, name: str, ports: Mapping[str, int]) -> dict[str, str]:
        """Of a gateway or a worker."""
        if name.startswith("gateway"):
            of_gateway = self.protection.of_gateway() if self.protection else {}
            return {"DALSTON_PORT": str(ports[name]), **of_gateway, **self.size.gateway}
        tritons = [self.links[link].port for link in self.links if link.startswith(f"{name}>")]
        return {
            "WORKER_ID": name,
            "WORKER_PORT": str(ports[name]),
            "WORKER_ENDPOINT": f"ws://127.0.0.1:{self.links[f'gateway>{name}'].port}",
            "MAX_SESSIONS": str(self.size.sessions),
            "DALSTON_HEARTBEAT_SECONDS": "2",
            "TRITON_URLS": ",".join(f"127.0.0.1:{port}" for port in tritons),
        } | (self.protection.of_worker() if self.protection else {})

    def _triton(self, name: str, port: int) -> list[str]:
        if self.size.instant:
            return [sys.executable, str(_INSTANT), str(port)]
        run = self.folder / name
        run.mkdir(exist_ok=True)
        command = [*_DALSTON, "triton", "--repository", str(self.size.repository)]
        command += ["--run-dir", str(run), "--http-port", str(port)]
        return [*command, "--grpc-port", str(free_port()), "--metrics-port", str(free_port())]

    # Redis. Who follows whom changes, and Redis and Sentinels write it into these files.

    @property
    def _password(self) -> str:
        return self.protection.redis_password if self.protection else ""

    def _redis_url(self, ports: Mapping[str, int]) -> str:
        user = f":{self._password}@" if self._password else ""
        if not self.size.sentinels:
            return f"redis://{user}127.0.0.1:{self.links['any>redis-1'].port}"
        watching = [f"127.0.0.1:{ports[name]}" for name in ports if name.startswith("sentinel")]
        return f"redis+sentinel://{user}{','.join(watching)}/{SERVICE}/0"

    def _redis(self, name: str, port: int) -> list[str]:
        (self.folder / name).mkdir()
        lines = ["save ''", "appendonly yes", "appendfsync everysec", "repl-timeout 5"]
        lines += ["repl-diskless-sync yes", "repl-diskless-sync-delay 0"]
        lines += ["replica-announce-ip 127.0.0.1"]
        lines += [f"replica-announce-port {self.links[f'any>{name}'].port}"]
        if self._password:
            lines += [f"requirepass {self._password}", f"masterauth {self._password}"]
        if name != "redis-1":
            lines += [f"replicaof 127.0.0.1 {self.links['any>redis-1'].port}"]
        return [*hardships.IGNORING_FULL_DISKS, redis_server(), self._file(name, port, lines)]

    def _sentinel(self, name: str, port: int) -> list[str]:
        (self.folder / name).mkdir()
        majority = self.size.sentinels // 2 + 1
        watched = f"{SERVICE} 127.0.0.1 {self.links['any>redis-1'].port} {majority}"
        lines = [f"sentinel monitor {watched}"]
        lines += [f"sentinel down-after-milliseconds {SERVICE} {SILENT_MS}"]
        lines += [f"sentinel failover-timeout {SERVICE} {3 * SILENT_MS}"]
        if self._password:
            lines += [f"sentinel auth-pass {SERVICE} {self._password}"]
        return [redis_server(), self._file(name, port, lines), "--sentinel"]

    def _file(self, name: str, port: int, lines: list[str]) -> str:
        folder = self.folder / name
        usual = [f"port {port}", "bind 127.0.0.1", f"dir {folder}"]
        (self.folder / f"{name}.conf").write_text("\n".join([*usual, *lines]) + "\n")
        return str(self.folder / f"{name}.conf")

    def _haproxy(self, ports: Mapping[str, int]) -> Member:
        assert self.protection
        fronts = dict[int, int]()
        for name, port in ports.items():
            if name.startswith("gateway"):
                fronts[front := free_port()] = port
                self.links[f"client>{name}"].target = front
        file = self.folder / "front-1.conf"
        file.write_text(haproxy(self.protection.certificate, fronts))
        command = ["haproxy", "-db", "-f", str(file)]
        return self._part("front", "front-1", next(iter(fronts)), command, 3)
