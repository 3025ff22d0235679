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
from tritonclient.grpc import service_pb2, service_pb2_grpc

from dalston.triton.contract import VAD_MODEL, asleep_mark
from dalston.triton.idleness import Idleness
from dalston.triton.installation import STUB, ServerError, backend_folder, find
from dalston.triton.probe import probe
from dalston.triton.process import dies_with_us, guard

logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")

STARTING_S = 600.0  # large checkpoints take minutes to load
UNLOADING_S = 10.0  # it waits for what is under way
WATCH_EVERY_S = 0.5
PROBE_EVERY_S = 10.0
PROBED_S = 10.0  # for the answer of a model that gave none since the last look
# For the process of an unloaded model to end: it takes 3 s, and with requests under way as long as
# those. What then still runs is killed.
ENDING_S = 30.0
# After so many reloads of one model within this time, a new server is the better cure.
RELOADS, RELOADS_WITHIN_S = 3, 60.0
# Before a new server; one that lasted is replaced as fast as the first.
RESTART_FIRST_S, RESTART_LAST_S, LASTED_S = 0.5, 5.0, 60.0
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


@dataclass
class _Asleep:
    """A model that was unloaded because nobody used it."""

    since: float
    old: set[psutil.Process]  # that served it, and end later


class Server:
    """One tritonserver, kept running.

    repository: as built by `dalston models build`. folder: for our own files; must exist. traces:
    URL of who collects them, OTLP over HTTP. unload_after_s: a Whisper model that nobody has used
    for so long is unloaded; None: never.
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
        # All that the server and its stubs put into /dev/shm begins like this.
        self._shm = f"dalston_{os.getpid()}_{secrets.token_hex(4)}_"
        self._tell, self._traces = tell, traces
        self._process: asyncio.subprocess.Process | None = None
        self._guard: asyncio.subprocess.Process | None = None
        self._was_ready = False
        self._reloads: dict[str, list[float]] = {}
        self._stopped = set[int]()  # process ids
        self._idleness = Idleness(unload_after_s)
        # How often use is looked at; None: never.
        self._count_every_s = None if unload_after_s is None else min(unload_after_s / 4, 10.0)
        self._asleep: dict[str, _Asleep] = {}  # by model

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

    # One server, from start to whatever ends it.

    async def _serve(self) -> None:
        """Returns never; raises ServerError when this server is of no use any more."""
        self._check_ports()
        self._process = await asyncio.create_subprocess_exec(
            *dies_with_us(self._command()),
            env=self._environment(),
            # Ctrl-C is for us: it is stopped in order. And its stubs can be told from others.
            start_new_session=True,
        )
        self._guard = await guard(self._process.pid, f"{_SHARED_MEMORY}/{self._shm}")
        address = f"{'127.0.0.1' if self._host == '0.0.0.0' else self._host}:{self._ports.grpc}"
        async with grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            serving = await self._wait_until_ready(stub)
            self._asleep.clear()  # a new server loads them all
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
                for model in await self._wanted(stub):
                    if stubs := await self._wake(stub, model):
                        serving[model] = stubs
                        living = self._stubs()  # it took a while
                for model, asleep in self._asleep.items():
                    self._end(model, living[model] & asleep.old, asleep)
                if self._count_every_s is not None and time.monotonic() >= next_count:
                    for model in await self._idle(stub):
                        if await self._unload(stub, model, living[model]):
                            serving[model] = set()
                            answered.pop(model, None)
                    next_count = time.monotonic() + self._count_every_s
                dead = {model for model, stubs in serving.items() if stubs - living[model]}
                if not dead and time.monotonic() >= next_probe:
                    dead = await self._silent(stub, answered)
                    next_probe = time.monotonic() + PROBE_EVERY_S
                    # One that hangs would keep its model from being unloaded.
                    for process in (process for model in dead for process in living[model]):
                        _kill(process)
                for model in sorted(dead):
                    serving[model] = await self._reload(stub, model)

    def _command(self) -> list[str]:
        host, ports = self._host, self._ports
        return [
            str(self._installation.binary),
            f"--model-repository={self._repository}",
            f"--backend-directory={self._backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shm}",
            "--model-control-mode=explicit",
            "--load-model=*",
            # Ours are complete; asking each stub for them first costs seconds.
            "--disable-auto-complete-config",
            *(f"--{name}-address={host}" for name in ("grpc", "http", "metrics")),
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
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
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
                try:
                    probe.bind((self._host, port))
                except OSError as error:
                    raise ServerError(
                        f"Triton cannot listen at {self._host}:{port} ({name}): {error.strerror}. "
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
                _kill(process)

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
                        living[Path(path).parts[-3]].add(child)
        return living

    async def _wait_until_ready(self, stub: Any) -> dict[str, set[psutil.Process]]:
        """The processes that serve each model, those included that died since they were started."""
        began, told = time.monotonic(), ""
        serving = self._stubs()
        while time.monotonic() - began < STARTING_S:
            self._check_processes()
            for model, stubs in self._stubs().items():
                serving[model] |= stubs
            ready = [model for model in self.models if await _is_ready(stub, model)]
            line = f"models loaded: {', '.join(ready) or 'none yet'}"
            if line != told:
                self._tell(line)
                told = line
            if len(ready) == len(self.models):
                return serving
            await asyncio.sleep(0.1)
        raise ServerError(f"tritonserver was not ready after {STARTING_S:g} s")

    async def _silent(self, stub: Any, answered: dict[str, int]) -> set[str]:
        """Models that have answered nothing since we last looked, and do not when asked.

        Raises ServerError if it is the server.
        """
        if not await _is_live(stub) and not await _is_live(stub):
            raise ServerError("tritonserver does not answer")
        silent = set[str]()
        for model in self._awake():
            try:
                count = await _answers(stub, model)
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

    def _awake(self) -> list[str]:
        return [model for model in self.models if model not in self._asleep]

    async def _idle(self, stub: Any) -> list[str]:
        """Whisper models that nobody has used for long."""
        idle = list[str]()
        for model in self._awake():
            if model == VAD_MODEL:
                continue  # it is tiny, and the first thing that a session asks
            with contextlib.suppress(grpc.aio.AioRpcError):  # _silent sees what that means
                self._idleness.counted(model, await _answers(stub, model), time.monotonic())
                if self._idleness.is_idle(model, time.monotonic()):
                    idle.append(model)
        return idle

    async def _unload(self, stub: Any, model: str, stubs: set[psutil.Process]) -> bool:
        """Put it to sleep; whether it is.

        What it was asked before is still answered. What it is asked now is refused, and whoever
        asks has it loaded again.
        """
        idle_s = self._idleness.idle_s(model, time.monotonic())
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        try:
            await self._mark(stub, model)  # first: who finds it unloaded looks for the mark
            await stub.RepositoryModelUnload(request, timeout=UNLOADING_S)
        except grpc.aio.AioRpcError as error:
            # It is only memory: no reason to harm whoever uses the others.
            logger.warning("%s cannot be unloaded: %s", model, error.details())
            self._idleness.loaded(model, time.monotonic())
            return False
        self._asleep[model] = _Asleep(time.monotonic(), stubs)
        logger.info("%s is unloaded: nobody has used it for %.0f s", model, idle_s)
        return True

    async def _mark(self, stub: Any, model: str) -> None:
        """That it is asleep. Raises AioRpcError."""
        # One each: Triton takes the second region of a key for the first's, which is closed.
        memory = f"{self._shm}{asleep_mark(model)}"
        (_SHARED_MEMORY / memory).write_bytes(b"\0")
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=asleep_mark(model), key=f"/{memory}", byte_size=1
        )
        await stub.SystemSharedMemoryRegister(request, timeout=5)

    async def _wanted(self, stub: Any) -> list[str]:
        """The models that are asleep and whose mark somebody has taken away."""
        if not self._asleep:
            return []
        request = service_pb2.SystemSharedMemoryStatusRequest()
        try:
            marks = (await stub.SystemSharedMemoryStatus(request, timeout=5)).regions
        except grpc.aio.AioRpcError:
            return []  # _silent sees what that means
        return [model for model in self._asleep if asleep_mark(model) not in marks]

    async def _wake(self, stub: Any, model: str) -> set[psutil.Process]:
        """The processes that serve it now, those included that died since they were started; none,
        if it cannot be loaded, and then it is marked again.

        Raises ServerError if Triton does not answer.
        """
        asleep = self._asleep[model]
        began = time.monotonic()
        old = self._stubs()[model]
        try:
            try:
                serving = await self._load(stub, model, old)
            except grpc.aio.AioRpcError as error:
                logger.error("%s cannot be loaded: %s", model, error.details())
                await self._mark(stub, model)
                return set()
        except grpc.aio.AioRpcError as error:
            raise ServerError(f"{model} cannot be loaded: {error.details()}") from None
        del self._asleep[model]
        now = time.monotonic()
        self._idleness.loaded(model, now)
        slept_s, took_s = began - asleep.since, now - began
        logger.info("%s is loaded again, in %.1f s, after %.0f s", model, took_s, slept_s)
        return serving

    async def _load(self, stub: Any, model: str, old: set[psutil.Process]) -> set[psutil.Process]:
        """The processes that serve it then, those included that died. Raises AioRpcError."""
        load = service_pb2.RepositoryModelLoadRequest(model_name=model)
        loading = asyncio.ensure_future(stub.RepositoryModelLoad(load, timeout=STARTING_S))
        serving = set[psutil.Process]()
        while not loading.done():
            await asyncio.wait([loading], timeout=0.1)
            serving |= self._stubs()[model] - old
        await loading
        return serving

    def _end(self, model: str, left: set[psutil.Process], asleep: _Asleep) -> None:
        """Processes of an unloaded model that this Triton never ends (docs/log.md)."""
        if left and time.monotonic() - asleep.since > ENDING_S:
            logger.warning("%s: %d processes do not end; they are killed", model, len(left))
            for process in left:
                _kill(process)

    async def _reload(self, stub: Any, model: str) -> set[psutil.Process]:
        """The processes that serve it now, those included that died since they were started."""
        now = time.monotonic()
        recent = [t for t in self._reloads.get(model, []) if now - t < RELOADS_WITHIN_S]
        self._reloads[model] = [*recent, now]
        if len(recent) >= RELOADS:
            raise ServerError(f"{model} keeps dying")
        logger.error("%s is dead; it is loaded again", model)
        # This Triton ends what it has unloaded later, or never (docs/log.md).
        segments, old = self._shared_memory(), self._stubs()[model]
        try:
            unload = service_pb2.RepositoryModelUnloadRequest(model_name=model)
            await stub.RepositoryModelUnload(unload, timeout=UNLOADING_S)
            serving = await self._load(stub, model, old)
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
        return list(_SHARED_MEMORY.glob(f"{self._shm}*"))

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


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


async def _is_live(stub: Any) -> bool:
    try:
        await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)
    except grpc.aio.AioRpcError:
        return False
    return True


async def _answers(stub: Any, model: str) -> int:
    """How many a model has given since it was loaded."""
    request = service_pb2.ModelStatisticsRequest(name=model)
    statistics = await stub.ModelStatistics(request, timeout=5)
    return sum(s.inference_stats.success.count for s in statistics.model_stats)


async def _is_ready(stub: Any, model: str) -> bool:
    try:
        request = service_pb2.ModelReadyRequest(name=model)
        return (await stub.ModelReady(request, timeout=2)).ready
    except grpc.aio.AioRpcError:
        return False


def main(
    repository: Path,
    folder: Path,
    ports: Ports,
    host: str,
    traces: str | None = None,
    unload_after_s: float | None = None,
) -> int:
    """Run Triton until SIGTERM or SIGINT; the exit status."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")

    async def run() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await Server(
            repository, folder, ports, host, traces=traces, unload_after_s=unload_after_s
        ).run(stop)

    try:
        asyncio.run(run())
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
