"""
The tritonserver process: start it, watch it, stop it.

Health is an inference. A model whose stub process has died stays "ready" for ever and fails every
request, so stubs are watched as processes, and models that answered nothing for a while are asked
something. A process that is stopped is as good as dead, and killed. A dead stub is cured by
unloading and loading its model; what that does not cure, by a new server.

A Whisper model that nobody has used for long can be put to sleep: it is unloaded, and its memory is
free. Meanwhile it is neither dead nor probed, and Triton has a mark of it, which anybody can take
away who wants the model (orchestrator/inference/fleet.py). Then it is loaded again, by us: Triton
answers nobody over HTTP while it loads what it was asked for over HTTP.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from tritonclient.grpc import service_pb2_grpc

from dalston.triton import control, private_files, restricted
from dalston.triton.contract import TOKEN_VARIABLE
from dalston.triton.idleness import Idleness
from dalston.triton.installation import STUB, ServerError, backend_folder, find
from dalston.triton.plain_paths import PlainPaths
from dalston.triton.probe import probe
from dalston.triton.process import dies_with_us, guard
from dalston.triton.sleepers import SHARED_MEMORY, Sleepers

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 0.5
PROBE_EVERY_S = 10.0
PROBED_S = 10.0  # for the answer of a model that gave none since the last look
# After so many reloads of one model within this time, a new server is the better cure.
RELOADS, RELOADS_WITHIN_S = 3, 60.0
# Before a new server; one that lasted is replaced as fast as the first.
RESTART_FIRST_S, RESTART_LAST_S, LASTED_S = 0.5, 5.0, 60.0
_GRPC_HOST = "127.0.0.1"  # nobody uses it but we and `dalston triton --probe`
_NEVER = 2**31 - 1  # one request of so many is traced unasked
# Idle it exits within 3 s; requests under way get this long.
EXIT_TIMEOUT_S = 5
# Batches and instances use the cores; threads of libraries would fight over them.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# gRPC tries again after a second; a server that starts is there sooner.
_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


@dataclass(frozen=True)
class Ports:
    grpc: int
    http: int
    metrics: int


class Server:
    """One tritonserver, kept running.

    repository: as built by `dalston models build`. folder: for our own files; must exist. traces:
    URL of who collects them, OTLP over HTTP. unload_after_s: a Whisper model that nobody has used
    for so long is unloaded; None: never. token: who has it may control Triton (restricted.py);
    None: only we.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        ports: Ports,
        host: str = "127.0.0.1",
        tell: Callable[[str], None] = logger.info,
        traces: str | None = None,
        unload_after_s: float | None = None,
        token: str | None = None,
    ):
        self._installation = find()
        configs = sorted(repository.glob("*/config.pbtxt"))
        if not configs:
            raise ServerError(
                f"{repository} is no model repository: fill it with `dalston models build`"
            )
        self.models = [config.parent.name for config in configs]
        self._repository, self._ports, self._host = repository.resolve(), ports, host
        self._backends = backend_folder(self._installation, folder)
        self._paths = PlainPaths()
        # All that the server and its stubs put into /dev/shm begins like this.
        self._shm = f"dalston_{os.getpid()}_{secrets.token_hex(4)}_"
        self._tell, self._traces = tell, traces
        self._token = token or secrets.token_hex(16)
        self._process: asyncio.subprocess.Process | None = None
        self._guard: asyncio.subprocess.Process | None = None
        self._was_ready = False
        self._reloads: dict[str, list[float]] = {}
        self._stopped = set[int]()  # process ids
        self._idleness = Idleness(unload_after_s)
        # How often use is looked at; None: never.
        self._count_every_s = None if unload_after_s is None else min(unload_after_s / 4, 10.0)
        self._sleepers = Sleepers(self.models, self._idleness, self._shm, self._stubs)

    async def run(self, stop: asyncio.Event) -> None:
        """Start, watch and restart the server until `stop`; then stop it.

        Raises ServerError if it does not come up the first time.
        """
        wait = RESTART_FIRST_S
        stopping = asyncio.create_task(stop.wait())
        tasks: list[asyncio.Task[Any]] = [stopping]
        try:
            while True:
                began = time.monotonic()
                serving = asyncio.create_task(self._serve())
                tasks = [serving, stopping]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set():
                    return
                failure = serving.exception()
                if not isinstance(failure, ServerError) or not self._was_ready:
                    await serving  # raises
                # Of no use any more: waiting for it would only keep its callers waiting.
                await self._stop(0)
                if time.monotonic() - began > LASTED_S:
                    wait = RESTART_FIRST_S
                logger.error("%s; a new server in %.1f s", failure, wait)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), wait)
                    return
                wait = min(2 * wait, RESTART_LAST_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop()
            self._paths.remove()

    # One server, from start to whatever ends it.

    async def _serve(self) -> None:
        """Returns never; raises ServerError when this server is of no use any more."""
        self._check_ports()
        command, environment = self._command(), self._environment()
        self._process = await asyncio.create_subprocess_exec(
            *dies_with_us(command),
            env=environment,
            # Ctrl-C is for us: it is stopped in order. And its stubs can be told from others.
            start_new_session=True,
        )
        memory = f"{SHARED_MEMORY}/{self._shm}"
        self._guard = await guard(self._process.pid, memory, self._paths.folder)
        address = f"{_GRPC_HOST}:{self._ports.grpc}"
        async with restricted.channel(address, self._token, _CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            serving = await self._wait_until_ready(stub)
            self._sleepers.clear()
            for model in self.models:
                await probe(stub, model)
                self._idleness.loaded(model, time.monotonic())
            self._was_ready = True
            self._tell("every model answers")
            answered: dict[str, int] = {}
            next_probe = time.monotonic() + PROBE_EVERY_S
            next_count = time.monotonic()
            while True:
                await asyncio.sleep(WATCH_EVERY_S)
                self._check_processes()
                living = self._stubs()
                for model in await self._sleepers.wanted(stub):
                    if stubs := await self._sleepers.wake(stub, model):
                        serving[model] = stubs
                        living = self._stubs()  # it took a while
                self._sleepers.end_old(living)
                if self._count_every_s is not None and time.monotonic() >= next_count:
                    for model in await self._sleepers.idle(stub):
                        if await self._sleepers.put_to_sleep(stub, model, living[model]):
                            serving[model] = set()
                            answered.pop(model, None)
                    next_count = time.monotonic() + self._count_every_s
                dead = {model for model, stubs in serving.items() if stubs - living[model]}
                if not dead and time.monotonic() >= next_probe:
                    dead = await self._silent(stub, answered)
                    next_probe = time.monotonic() + PROBE_EVERY_S
                    # One that hangs would keep its model from being unloaded.
                    for process in (process for model in dead for process in living[model]):
                        control.kill(process)
                for model in sorted(dead):
                    serving[model] = await self._reload(stub, model)

    def _command(self) -> list[str]:
        host, ports = self._host, self._ports
        return [
            # Its shared memory holds what callers say.
            *(sys.executable, "-IS", private_files.__file__),
            str(self._installation.binary),
            f"--model-repository={self._paths.of(self._repository, 'models')}",
            f"--backend-directory={self._paths.of(self._backends, 'backends')}",
            f"--backend-config=python,shm-region-prefix-name={self._shm}",
            "--model-control-mode=explicit",
            "--load-model=*",
            # Ours are complete; asking each stub for them first costs seconds.
            "--disable-auto-complete-config",
            *(f"--{name}-address={host}" for name in ("http", "metrics")),
            f"--grpc-address={_GRPC_HOST}",
            *restricted.options(self._token),
            f"--grpc-port={ports.grpc}",
            f"--http-port={ports.http}",
            f"--metrics-port={ports.metrics}",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            "--log-info=false",
            *([] if _has_gpu() else ["--allow-gpu-metrics=false"]),
            *(_trace_options(self._traces) if self._traces else []),
        ]

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        # The stub is an isolated interpreter: it takes the first python3 on PATH for its home.
        python = self._paths.of(Path(sys.executable).parent.parent, "python") / "bin"
        environment["PATH"] = f"{python}:{environment.get('PATH', '')}"
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
        environment |= ONE_THREAD
        if self._installation.libraries:
            paths = [str(self._installation.libraries), environment.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = ":".join(path for path in paths if path)
        return environment

    def _check_ports(self) -> None:
        """Another server behind one of them would be taken for ours, until ours gives up."""
        for name, port in vars(self._ports).items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                host = _GRPC_HOST if name == "grpc" else self._host
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise ServerError(
                        f"Triton cannot listen at {host}:{port} ({name}): {error.strerror}. "
                        f"Stop what does, or give another --{name}-port."
                    ) from None

    def _check_processes(self) -> None:
        """Raises ServerError if the server is dead, or stopped. Kills stubs that are stopped.

        Those who are stopped have to be so twice: it may be over in a moment.
        """
        assert self._process
        if (code := self._process.returncode) is not None:
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            raise ServerError(f"tritonserver has died ({how})")
        stubs = [process for processes in self._stubs().values() for process in processes]
        stopped = {pid for pid in (self._process.pid, *(s.pid for s in stubs)) if _is_stopped(pid)}
        still, self._stopped = stopped & self._stopped, stopped
        if self._process.pid in still:
            raise ServerError("tritonserver is stopped (SIGSTOP)")
        for process in stubs:
            if process.pid in still:
                logger.error("a model's process is stopped (SIGSTOP); it is killed")
                control.kill(process)

    def _stubs(self) -> dict[str, set[psutil.Process]]:
        """Living stub processes by model. Their command line names the model's file."""
        living = {model: set[psutil.Process]() for model in self.models}
        if self._process is None:
            return living
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children():
                # One that has died has no command line, or raises: it is not counted.
                with contextlib.suppress(psutil.Error, ValueError):
                    program, path = child.cmdline()[:2]
                    if program.endswith(STUB):
                        # Of a model that is none of ours there is nothing to look after.
                        living.get(Path(path).parts[-3], set[psutil.Process]()).add(child)
        return living

    async def _wait_until_ready(self, stub: Any) -> dict[str, set[psutil.Process]]:
        """The processes that serve each model, those included that died since they were started."""
        began, told, hidden = time.monotonic(), "", False
        serving = self._stubs()
        while time.monotonic() - began < control.STARTING_S:
            self._check_processes()
            living = self._stubs()
            # Once it starts models it has read its command line.
            if not hidden and self._process and any(living.values()):
                restricted.hide(self._process.pid, self._token)
                hidden = True
            for model, stubs in living.items():
                serving[model] |= stubs
            ready = [model for model in self.models if await control.is_ready(stub, model)]
            line = f"models loaded: {', '.join(ready) or 'none yet'}"
            if line != told:
                self._tell(line)
                told = line
            if len(ready) == len(self.models):
                return serving
            await asyncio.sleep(0.1)
        raise ServerError(f"tritonserver was not ready after {control.STARTING_S:g} s")

    async def _silent(self, stub: Any, answered: dict[str, int]) -> set[str]:
        """Models that have answered nothing since we last looked, and do not when asked.

        Raises ServerError if it is the server.
        """
        if not await control.is_live(stub) and not await control.is_live(stub):
            raise ServerError("tritonserver does not answer")
        silent = set[str]()
        for model in self._sleepers.awake():
            try:
                count = await control.answers(stub, model)
                if count <= answered.get(model, -1):
                    await probe(stub, model, PROBED_S)
                    self._idleness.probed(model)
                    count += 1
                answered[model] = count
            except ServerError as error:
                logger.warning("does not answer: %s", error)
                silent.add(model)
            except grpc.aio.AioRpcError as error:
                logger.warning("%s does not answer: %s", model, error.details())
                silent.add(model)
        return silent

    async def _reload(self, stub: Any, model: str) -> set[psutil.Process]:
        """The processes that serve it now, those included that died since they were started."""
        now = time.monotonic()
        recent = [t for t in self._reloads.get(model, []) if now - t < RELOADS_WITHIN_S]
        self._reloads[model] = [*recent, now]
        if len(recent) >= RELOADS:
            raise ServerError(f"{model} keeps dying")
        logger.error("%s is dead; it is loaded again", model)
        # This Triton ends what it has unloaded later, or never (docs/log.md).
        segments = self._shared_memory()
        try:
            await control.unload(stub, model)
            serving = await control.load(stub, model, lambda: self._stubs()[model])
            await probe(stub, model)
        except grpc.aio.AioRpcError as error:
            raise ServerError(f"{model} cannot be loaded again: {error.details()}") from None
        self._remove_shared_memory(segments)
        self._idleness.loaded(model, time.monotonic())
        logger.info("%s answers again", model)
        return serving

    async def _stop(self, patience_s: float = EXIT_TIMEOUT_S + 1) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if patience_s:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), patience_s)
            except TimeoutError:
                logger.warning("tritonserver does not stop; it is killed")
        # The stubs too: killed in the middle of a request, a server leaves them behind, and they
        # wait for it for ever with the model in their memory.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self._remove_shared_memory(self._shared_memory())
        if self._guard:
            self._guard.kill()
            await self._guard.communicate()

    def _shared_memory(self) -> list[Path]:
        return list(SHARED_MEMORY.glob(f"{self._shm}*"))

    def _remove_shared_memory(self, segments: Iterable[Path]) -> None:
        """Those that no process of ours holds: a stub that is killed leaves its own behind."""
        family = [self._process.pid] if self._process else []
        family += [stub.pid for stubs in self._stubs().values() for stub in stubs]
        held = "".join(_maps(pid) for pid in family)
        for path in segments:
            if str(path) not in held:
                path.unlink(missing_ok=True)


def _trace_options(url: str) -> list[str]:
    """Requests that bring a trace along are part of it; of the others so few that it is none."""
    settings = {
        "mode": "opentelemetry",
        "level": "TIMESTAMPS",
        "rate": str(_NEVER),
        "opentelemetry,url": f"{url.rstrip('/')}/v1/traces",
        "opentelemetry,resource": "service.name=dalston-triton",
    }
    return [f"--trace-config={name}={value}" for name, value in settings.items()]


def _maps(pid: int) -> str:
    """What is mapped into a process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text()
    return ""


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def main(
    repository: Path,
    folder: Path,
    ports: Ports,
    host: str,
    traces: str | None = None,
    unload_after_s: float | None = None,
    token: str | None = None,
) -> int:
    """Run Triton until SIGTERM or SIGINT; the exit status."""
    if token and not restricted.is_token(token):
        print(f"{TOKEN_VARIABLE}: letters, digits and -._~ only, 16 at least", file=sys.stderr)
        return 2
    if unload_after_s and not token:
        print(
            f"models that are unloaded are loaded again for workers that have Triton's token: give "
            f"both the same {TOKEN_VARIABLE}, or unload none",
            file=sys.stderr,
        )
        return 2
    os.umask(0o077)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")

    async def run() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await Server(
            repository,
            folder,
            ports,
            host,
            traces=traces,
            unload_after_s=unload_after_s,
            token=token,
        ).run(stop)

    try:
        asyncio.run(run())
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
