"""
Does to a deployment what a fault says, at a moment when somebody is in the middle of a word.
"""

import asyncio
import contextlib
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import psutil
from caller import Caller
from deployment import Deployment, Link, Member
from faults import Fault
from redis.exceptions import RedisError
from support import hardships
from support.proxy import Proxy
from websockets.exceptions import WebSocketException

# How long a fault waits for an utterance to fall into, for its target to be there, and for the
# other of a pair to be well.
WORD_WITHIN_S, THERE_WITHIN_S, SPARED_WITHIN_S = 1.5, 10.0, 25.0
DELAYS_S = (0.05, 0.8)
BYTES_PER_S = (20_000, 60_000)  # a caller speaks 32,000
CLOCKS_S = (60, 6 * 3600)
FAIL_OVER_S = 6.0  # until the one that was the master is there again
STORM = 50
# Of the processor, while there is something that cannot be had: more is a loop that waits for it.
BUSY = 0.8
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Struck:
    """A fault that was done."""

    fault: Fault
    target: str
    mid_utterance: bool
    hit: tuple[Caller, ...]  # those whose session it struck, in mid-utterance
    at: float  # time.monotonic
    waited_s: float  # for the other of a pair


@dataclass
class Injector:
    deployment: Deployment
    callers: Sequence[Caller]
    tell: Callable[[str], None]  # what a process must not do, in words
    _going: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def strike(self, fault: Fault) -> Struck:
        began = time.monotonic()
        target, affected, act = await self._aim(fault)
        waited_s = time.monotonic() - began
        hit = await self._mid_utterance(affected)
        at = time.monotonic()
        await act()
        return Struck(fault, target, bool(hit), hit, at, waited_s)

    async def settle(self) -> None:
        """Until everything that was begun is taken back."""
        await asyncio.gather(*self._going)

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    async def _mid_utterance(
        self, affected: Callable[[], Awaitable[list[Caller]]]
    ) -> tuple[Caller, ...]:
        deadline = time.monotonic() + WORD_WITHIN_S
        while True:
            hit = tuple(caller for caller in await affected() if caller.speaking)
            if hit or time.monotonic() > deadline:
                return hit
            await asyncio.sleep(0.03)

    # What a fault means here: a name, whose sessions it meets, and what to do.

    async def _aim(
        self, fault: Fault
    ) -> tuple[str, Callable[[], Awaitable[list[Caller]]], Callable[[], Awaitable[None]]]:
        match fault.where:
            case "gateway" | "worker" | "triton" | "redis" | "sentinel":
                return await self._aim_at_process(fault)
            case "client":
                victim = self.callers[fault.target % len(self.callers)]
                if fault.action == "storm":
                    gateway = fault.target % len(self.deployment.urls)
                    url = self.deployment.urls[gateway]
                    return url, self._everybody, lambda: self._storm(gateway, fault)

                async def one() -> list[Caller]:
                    return [victim]

                async def slow() -> None:
                    victim.stop_reading(fault.lasting_s)

                return f"caller {fault.target % len(self.callers)}", one, slow
            case _:
                return self._aim_at_link(fault)

    async def _aim_at_process(
        self, fault: Fault
    ) -> tuple[str, Callable[[], Awaitable[list[Caller]]], Callable[[], Awaitable[None]]]:
        there = self.deployment.of(fault.where)  # pyright: ignore[reportArgumentType]
        member = there[fault.target % len(there)]
        others = [other for other in there if other is not member]
        with contextlib.suppress(TimeoutError):
            await self.deployment.until_well([member], THERE_WITHIN_S)
        if fault.spared:
            with contextlib.suppress(TimeoutError):
                await self.deployment.until_well(others, SPARED_WITHIN_S)

        async def affected() -> list[Caller]:
            match fault.where:
                case "gateway":
                    index = there.index(member)
                    return [c for c in self.callers if c.gateway == index]
                case "worker":
                    return await self._served_by(member.part.name)
                case _:
                    return await self._everybody()

        if fault.action in ("restart emptied", "fail over"):
            with contextlib.suppress(RedisError, OSError):
                member = await self.deployment.master()
        return member.part.name, affected, lambda: self._do(fault, member)

    async def _do(self, fault: Fault, member: Member) -> None:
        process = member.part.process
        if not member.running or process is None:
            return
        match fault.action:
            case "kill":
                process.kill()
            case "term":
                process.terminate()
            case "stop":
                self._stop_for(member, fault.lasting_s)
            case "kill server" | "kill stub":
                _kill_inside(member, fault)
            case "restart kept":
                member.down_s = fault.lasting_s
                process.terminate()  # it writes what it has
            case "restart emptied":
                # Started again by hand: between its end and its start the data has to go.
                member.down_s = fault.lasting_s
                process.kill()
                await process.wait()
                shutil.rmtree(self.deployment.folder / member.part.name)
                (self.deployment.folder / member.part.name).mkdir()
                self._forget()
            case "fail over":
                self._later(self._fail_over(member, process, fault.lasting_s))
            case "fill disk":
                self._later(self._in_need(hardships.full_disk, member, fault.lasting_s))
            case "starve":
                self._later(self._in_need(hardships.no_descriptors, member, fault.lasting_s))
            case "set clock":
                self._later(self._set_clock(fault, member))
            case _:
                raise AssertionError(fault)

    def _forget(self) -> None:
        self.deployment.forgot.append(time.monotonic())

    async def _fail_over(
        self, master: Member, process: asyncio.subprocess.Process, lasting_s: float
    ) -> None:
        """The others do not hear of what is written; then the master is gone."""
        proxy = dict(self.deployment.link("redis"))[f"any>{master.part.name}"]
        for other in self.deployment.of("redis"):
            if other is not master and other.running:
                proxy.silence(_ports(other.pid, {proxy.port}))
        await asyncio.sleep(lasting_s)
        master.down_s = FAIL_OVER_S
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        self._forget()

    async def _in_need(
        self,
        hardship: Callable[[int], AbstractContextManager[None]],
        member: Member,
        lasting_s: float,
    ) -> None:
        pid, name = member.pid, member.part.name
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            before, began = hardships.processor_s(pid), time.monotonic()
            with hardship(pid):
                await asyncio.sleep(lasting_s)
            share = (hardships.processor_s(pid) - before) / (time.monotonic() - began)
            if share > BUSY:
                self.tell(f"{name} took {share:.0%} of a processor in {hardship.__name__}")

    async def _set_clock(self, fault: Fault, member: Member) -> None:
        rng = random.Random(fault.number)
        seconds = rng.choice((-1, 1)) * rng.randint(*CLOCKS_S)
        assert member.clock
        hardships.set_clock(member.clock, seconds)
        try:
            if member.role == "redis":
                self._forget()  # what is kept for a time only is kept no more
            await asyncio.sleep(fault.lasting_s)
        finally:
            hardships.set_clock(member.clock, 0)
            if member.role == "redis":
                self._forget()

    def _stop_for(self, member: Member, seconds: float) -> None:
        pids = [member.pid]
        if member.role == "triton":
            # The server, not only who watches it.
            pids += [p.pid for p in _children(member.pid) if p.name() == "tritonserver"]

        async def go_on() -> None:
            await asyncio.sleep(seconds)
            _signal(pids, signal.SIGCONT)

        _signal(pids, signal.SIGSTOP)
        self._later(go_on())

    def _aim_at_link(
        self, fault: Fault
    ) -> tuple[str, Callable[[], Awaitable[list[Caller]]], Callable[[], Awaitable[None]]]:
        kind: Link = "redis" if fault.where == "redis link" else fault.where  # pyright: ignore[reportAssignmentType]
        links = self.deployment.link(kind)
        index = fault.target % len(links)
        name, proxy = links[index]
        ports: set[int] | None = None
        clients = [*self.deployment.of("gateway"), *self.deployment.of("worker")]
        client = clients[fault.target % len(clients)]
        if kind == "redis" and not fault.all:
            name = f"{client.part.name}{name.removeprefix('any')}"

        async def affected() -> list[Caller]:
            nonlocal ports
            match kind:
                case "client-gateway":
                    there = [c for c in self.callers if c.gateway == index and c.connection]
                    if not fault.all:
                        talking = [caller for caller in there if caller.speaking] or there
                        there = talking[fault.target % len(talking) :][:1] if talking else []
                        ports = {caller.port for caller in there}
                    return there
                case "gateway-worker":
                    return await self._served_by(name.partition(">")[2])
                case "worker-triton":
                    return await self._served_by(name.partition(">")[0])
                case "redis":
                    return await self._everybody()

        async def act() -> None:
            meant = ports
            if kind == "redis" and not fault.all and client.running:
                meant = _ports(client.pid, {proxy.port})
            self._disturb(fault, proxy, meant)

        return name, affected, act

    def _disturb(self, fault: Fault, proxy: Proxy, ports: set[int] | None) -> None:
        match fault.action:
            case "reset":
                proxy.reset(ports)
            case "silence":
                proxy.silence(ports)
            case "truncate":
                proxy.truncate(ports)
            case "delay":
                seconds = random.Random(fault.number).uniform(*DELAYS_S)
                self._later(proxy.delay(seconds, fault.lasting_s))
            case "throttle":
                rate = random.Random(fault.number).randint(*BYTES_PER_S)
                self._later(proxy.throttle(rate, fault.lasting_s))
            case "lose":
                self._later(proxy.lose(fault.lasting_s))
            case _:
                raise AssertionError(fault)

    async def _storm(self, gateway: int, fault: Fault) -> None:
        """Connects that hang up: during the handshake, after it, without a word."""
        door, rng = self.deployment.door(self.deployment.free_key), random.Random(fault.number)

        async def one(number: int) -> None:
            patience = {"open_timeout": 3, "close_timeout": 0.2}
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                async with door.connect(gateway, {}, rng, **patience) as connection:
                    if number % 2:
                        connection.transport.abort()

        async def all() -> None:
            await asyncio.gather(*(one(number) for number in range(STORM)))

        self._later(all())

    async def _everybody(self) -> list[Caller]:
        return list(self.callers)

    async def _served_by(self, worker: str) -> list[Caller]:
        """The callers whose session this worker has; everybody while Redis cannot say."""
        found = list[Caller]()
        for caller in self.callers:
            if not caller.session_id:
                continue
            try:
                async with asyncio.timeout(0.5):
                    redis = await self.deployment.redis()
                    key = f"dalston:realtime:session:{caller.session_id}"
                    owner = await redis.hget(key, "worker_id")
            except (RedisError, OSError, TimeoutError):
                return list(self.callers)
            if owner == worker:
                found.append(caller)
        return found


def _ports(pid: int, of: Collection[int]) -> set[int]:
    """The local ends of a process's connections to these ports."""
    try:
        sockets = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return set()
    return {one.laddr.port for one in sockets if one.raddr and one.raddr.port in of}


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill_inside(member: Member, fault: Fault) -> None:
    wanted = STUB if fault.action == "kill stub" else "tritonserver"
    found = list[psutil.Process]()
    for process in _children(member.pid):
        with contextlib.suppress(psutil.Error, IndexError):
            if process.cmdline()[0].endswith(wanted):
                found.append(process)
    if found:
        found.sort(key=lambda process: process.cmdline())
        _signal([found[fault.target % len(found)].pid], signal.SIGKILL)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(number)
