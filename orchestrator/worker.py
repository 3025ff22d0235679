"""
The worker process: sessions over WebSocket at /session, its health at /health, its record in Redis.

A session comes from a gateway, which names it and its epoch, or from a client directly. Sessions
share one event loop; what they ask of the models leaves it at once.
"""

import asyncio
import contextlib
import functools
import hmac
import http
import json
import logging
import re
import secrets
import signal
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from urllib.parse import parse_qsl, urlsplit

import msgspec
import uvloop
from redis.exceptions import RedisError
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from dalston.orchestrator import logs, peer, request_ids
from dalston.orchestrator.fleet import Fleet
from dalston.orchestrator.handler import CloseCode, Limits, Models, handle
from dalston.orchestrator.inference import InferenceError, LoadedVariant
from dalston.orchestrator.lag import Lag, LagLimits
from dalston.orchestrator.memory import Memory
from dalston.orchestrator.messages import (
    Error,
    ErrorCode,
    SessionTerminated,
    Snapshot,
    serialize,
)
from dalston.orchestrator.parameters import ParameterError, choose_variant, session_config
from dalston.orchestrator.request_ids import named
from dalston.orchestrator.session import Session
from dalston.orchestrator.settings import LOOPBACK, WorkerSettings
from dalston.orchestrator.slots import (
    Registration,
    Slot,
    Slots,
    WorkerIdTaken,
    redis_client,
)
from dalston.triton.contract import SAMPLE_RATE

logger = logging.getLogger(__name__)

# The library closes above this; the handler refuses what is above its own, smaller limit with a
# message. A snapshot of a four hour session fits.
LONGEST_MESSAGE = 16 << 20  # bytes
# Frames that the library holds of each connection while the session does not read.
FRAMES_HELD = 4
# For a client that did not read, to read what was said last.
CLOSE_S = 2.0
LAST_FINALS_S = 5.0  # what sessions have to tell when a drain ends them


@dataclass(eq=False)
class _Running:
    """A session in this worker, until its last words are said."""

    epoch: int
    lag: Lag
    connection: ServerConnection
    direct: bool  # without a gateway
    work: asyncio.Task[int | None]
    taken_over: bool = False  # by a later epoch


class Worker:
    def __init__(self, settings: WorkerSettings):
        self._settings = settings
        self._tritons = Fleet(settings.triton_urls, self._out_of_memory)
        self._memory = Memory(settings.max_sessions)
        self._redis = redis_client(settings.redis_url)
        self._slots = Slots(self._redis)
        self._instance = secrets.token_hex(8)
        self._sessions: dict[str, _Running] = {}  # by id
        self._variants: Mapping[str, LoadedVariant] = {}
        self._unhealthy: str | None = "starting"
        self._less_room = asyncio.Event()  # than Redis knows of
        self._draining = asyncio.Event()  # no new sessions
        self._ending = asyncio.Event()  # running ones end, where no gateway goes on with them
        self._local_vad = None
        if settings.vad == "worker":
            try:
                from dalston.orchestrator.local_vad import LocalVad
            except ModuleNotFoundError as error:
                raise ValueError(f"DALSTON_VAD=worker needs onnxruntime: {error}") from None
            if settings.vad_model is None:
                raise ValueError("DALSTON_VAD=worker needs DALSTON_VAD_MODEL")
            self._local_vad = LocalVad(settings.vad_model)

    async def run(
        self, stop: asyncio.Event, listening: Callable[[int], None] = lambda _: None
    ) -> None:
        """Serve until `stop`, then drain. `listening` is told the port. Raises WorkerIdTaken."""
        try:
            async with serve(
                self._serve,
                self._settings.host,
                self._settings.port,
                process_request=self._answer_http,
                compression=None,
                max_size=LONGEST_MESSAGE,
                max_queue=FRAMES_HELD,
                open_timeout=self._settings.handshake_seconds,
            ) as server:
                port = _port(server)
                if self._settings.secret is None and self._settings.host not in LOOPBACK:
                    logger.warning(
                        "whoever reaches %s is let in: set DALSTON_WORKER_SECRET",
                        self._settings.host,
                    )
                logger.info("worker %s listens at port %d", self._settings.worker_id, port)
                listening(port)
                beating = [
                    asyncio.create_task(self._beat(port)),
                    asyncio.create_task(self._tell_of_less_room(port)),
                    # A Redis that is back has lost what it knew: it is told at once.
                    asyncio.create_task(self._slots.follow(lambda: self._register(port))),
                ]
                waiting = asyncio.create_task(stop.wait())
                await asyncio.wait([*beating, waiting], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not any(task.done() for task in beating):
                    await self._drain(port)
                for task in beating:
                    task.cancel()
                for ended in await asyncio.gather(*beating, return_exceptions=True):
                    if isinstance(ended, Exception):
                        raise ended
            with contextlib.suppress(RedisError):
                await self._slots.unregister(self._settings.worker_id, self._instance)
        finally:
            await self._redis.aclose()
            await self._tritons.close()

    async def _drain(self, port: int) -> None:
        """No new sessions; those that run have drain_seconds to end by themselves."""
        logger.info("draining %d sessions", len(self._sessions))
        self._draining.set()
        with contextlib.suppress(RedisError):
            await self._register(port)
        await self._until_empty(self._settings.drain_seconds)
        # A gateway goes on with its sessions elsewhere; whoever has none ends here, and what was
        # said last is still finished and told.
        self._ending.set()
        left = [running.connection for running in self._sessions.values() if not running.direct]
        await asyncio.gather(
            *(peer.close(connection, CloseCode.SERVICE_RESTART, CLOSE_S) for connection in left)
        )
        await self._until_empty(LAST_FINALS_S)

    async def _until_empty(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._sessions and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    # The record in Redis.

    async def _beat(self, port: int) -> None:
        """Look after the models, and say so in Redis. Raises WorkerIdTaken."""
        while True:
            await self._look_after_models()
            trouble = self._unhealthy is not None
            try:
                await self._register(port)
            except RedisError as error:
                # Running sessions do not need it; the next heartbeat puts everything back.
                logger.warning("Redis: %s", error)
                trouble = True
            wait = self._settings.heartbeat_seconds
            await asyncio.sleep(min(1.0, wait) if trouble else wait)

    async def _tell_of_less_room(self, port: int) -> None:
        """Sooner than the next heartbeat: gateways would give away slots that are none."""
        while True:
            await self._less_room.wait()
            self._less_room.clear()
            try:
                await self._register(port)
            except RedisError as error:
                logger.warning("Redis: %s", error)

    async def _register(self, port: int) -> None:
        if not self._variants:
            return  # nothing to offer yet
        used, total = await self._gpu_memory()
        languages = {code for loaded in self._variants.values() for code in loaded.languages}
        registration = Registration(
            worker_id=self._settings.worker_id,
            instance=self._instance,
            endpoint=self._settings.advertised(port),
            # A worker whose models fail takes no sessions either.
            status="draining" if self._draining.is_set() or self._unhealthy else "ready",
            capacity=self._memory.sessions,
            models=list(self._variants),
            models_loaded=sorted({loaded.model_id for loaded in self._variants.values()}),
            languages=[*sorted(languages), "auto"],
            version=version("dalston"),
            gpu_memory_used=used,
            gpu_memory_total=total,
        )
        epochs = {id: running.epoch for id, running in self._sessions.items()}
        await self._slots.heartbeat(registration, epochs)
        await self._slots.renew(
            [Slot(id, "", "", here.epoch) for id, here in self._sessions.items() if here.direct]
        )

    async def _look_after_models(self) -> None:
        """Whether sessions would work: by asking the models, not whether they are ready."""
        try:
            self._variants = await self._tritons.variants()
        except InferenceError as error:
            if self._unhealthy != str(error):
                logger.warning("not healthy: %s", error)
            self._unhealthy = str(error)
        else:
            if self._unhealthy:
                logger.info("healthy: %s", ", ".join(self._variants))
            self._unhealthy = None

    def _out_of_memory(self) -> None:
        if self._memory.ran_out(len(self._sessions)):
            logger.warning("a model ran out of memory: %d sessions at most", self._memory.sessions)
            self._less_room.set()

    async def _gpu_memory(self) -> tuple[str | None, str | None]:
        """Used and total, as "4.2GB", of Triton's first GPU."""
        url = self._settings.triton_metrics_url
        if url is None:
            return None, None

        def read() -> str:
            with urllib.request.urlopen(url, timeout=2) as response:
                return response.read().decode()

        try:
            metrics = await asyncio.to_thread(read)
        except OSError as error:
            logger.warning("%s: %s", url, error)
            return None, None
        return tuple(  # pyright: ignore[reportReturnType]
            f"{float(found[1]) / 1e9:.1f}GB" if found else None
            for found in (
                re.search(rf"^nv_gpu_memory_{kind}_bytes{{[^}}]*}} (\S+)", metrics, re.MULTILINE)
                for kind in ("used", "total")
            )
        )

    # HTTP and WebSocket.

    def _answer_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """GET /health without an upgrade; everything else is a WebSocket, sessions for those who
        know the secret."""
        path = urlsplit(request.path).path
        if "upgrade" in ",".join(request.headers.get_all("Connection")).lower():
            if path == "/session" and not self._may_have_sessions(request):
                sentence = "sessions are for gateways with this worker's DALSTON_WORKER_SECRET\n"
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, sentence)
            return None
        if path != "/health":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "only /health and /session\n")
        status = http.HTTPStatus.OK
        if self._unhealthy or self._draining.is_set():
            status = http.HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps(self._health()).encode()
        headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body))})
        return Response(status.value, status.phrase, headers, body)

    def _may_have_sessions(self, request: Request) -> bool:
        if self._settings.secret is None:
            return True
        shown = ",".join(request.headers.get_all("Authorization"))
        expected = f"Bearer {self._settings.secret.get_secret_value()}"
        return hmac.compare_digest(shown.encode(errors="replace"), expected.encode())

    def _health(self) -> dict[str, object]:
        if self._draining.is_set():
            return {"status": "draining", "active_sessions": len(self._sessions)}
        if self._unhealthy:
            return {"status": "unhealthy", "reason": self._unhealthy}
        return {
            "status": "healthy",
            "active_sessions": len(self._sessions),
            "capacity": self._memory.sessions,
            "models": sorted(self._variants),
        }

    async def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        url = urlsplit(connection.request.path)
        with contextlib.suppress(ConnectionClosed):
            if url.path == "/health":
                await connection.send(json.dumps(self._health()))
                await connection.close()
            elif url.path == "/session":
                await self._session(connection, dict(parse_qsl(url.query)))
            else:
                await connection.close(1008, "Invalid path")

    async def _session(self, connection: ServerConnection, query: dict[str, str]) -> None:
        request_ids.request_id.set(request_ids.new_or(query.get("request_id")))

        async def refuse(code: ErrorCode, sentence: str, close_code: int, reason: str) -> None:
            retry_after = 5 if code == "no_capacity" else None
            error = Error(
                code=code,
                message=sentence,
                recoverable=code == "no_capacity",
                retry_after=retry_after,
            )
            await connection.send(serialize(named(error)))
            await connection.close(close_code, reason)

        session_id = query.get("session_id") or f"sess_{secrets.token_hex(12)}"
        # One that runs has to go on somewhere, and here it has its slot.
        here = session_id in self._sessions
        full = not here and len(self._sessions) >= self._memory.sessions
        overloaded = not (here or "resume" in query) and any(
            running.lag.overloaded for running in self._sessions.values()
        )
        if full or overloaded or self._draining.is_set() or not self._variants:
            sentence = "this worker takes no more sessions"
            return await refuse("no_capacity", sentence, 1013, "Server at capacity")
        try:
            config, warnings = session_config(query)
            languages = {name: loaded.languages for name, loaded in self._variants.items()}
            variant, fallbacks = choose_variant(config, languages)
            epoch = msgspec.convert(query.get("epoch", "1"), int, strict=False)
            snapshot = None
            if query.get("resume"):
                async with asyncio.timeout(self._settings.handshake_seconds):
                    first = await connection.recv()
                snapshot = msgspec.json.decode(first, type=Snapshot)
        except ParameterError as error:
            return await refuse(error.code, str(error), 4400, str(error)[:120])
        except msgspec.MsgspecError as error:
            return await refuse("invalid_message", str(error), 4400, "no epoch, or no snapshot")
        except TimeoutError:
            sentence = f"no snapshot came for {self._settings.handshake_seconds:g} s"
            return await refuse("session_timeout", sentence, CloseCode.TIMEOUT, sentence)

        request_ids.session_id.set(session_id)
        if before := self._sessions.get(session_id):
            if before.epoch >= epoch:
                return await self._send_away(connection, session_id)
            before.taken_over = True
            before.work.cancel()
        loaded = self._variants[variant]
        config = msgspec.structs.replace(config, model=variant, model_id=loaded.model_id)
        session = Session(
            session_id,
            config,
            variant,  # pyright: ignore[reportArgumentType]
            languages=frozenset(loaded.languages),
            epoch=epoch,
            warnings=[*warnings, *fallbacks],
            snapshot=snapshot,
            partial_every=round(self._settings.partial_seconds * SAMPLE_RATE),
        )
        vad = self._local_vad or self._tritons
        mute = functools.partial(self._tritons.mute, variant)
        models = Models(vad.speech_probabilities, self._tritons.transcribe, mute)
        settings = self._settings
        limits = Limits(
            settings.idle_seconds,
            settings.session_seconds,
            settings.outage_seconds,
            settings.reader_seconds,
        )
        lag_limits = LagLimits(
            settings.lag_warning_seconds,
            settings.lag_limit_seconds,
            settings.lag_held_seconds,
            settings.outage_seconds,
        )
        lag = Lag(lag_limits, session.received, asyncio.get_running_loop().time())
        send = peer.sender(connection)
        direct = "session_id" not in query
        # Others are handed over.
        ending = self._ending if direct else asyncio.Event()
        frames = peer.frames(connection)
        work = asyncio.create_task(handle(session, frames, send, models, limits, ending, lag))
        running = _Running(epoch, lag, connection, direct, work)
        self._sessions[session_id] = running
        code = CloseCode.INTERNAL
        try:
            code = await work
        except asyncio.CancelledError:
            if not running.taken_over:
                raise
            logger.info("epoch %d is taken over", epoch)
            await self._send_away(connection, session_id)
        except Exception:
            logger.exception("%s failed", session_id)
            sentence = "something went wrong in the server"
            error = Error(code="internal_error", message=sentence, recoverable=False)
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await send(serialize(named(error)))
        finally:
            if self._sessions.get(session_id) is running:
                del self._sessions[session_id]
            # Who does not read had its time.
            slow = code == CloseCode.SLOW_READER
            patience = CLOSE_S if slow else settings.reader_seconds
            await peer.close(connection, code or CloseCode.NORMAL, patience)
            status = "error" if code == CloseCode.INTERNAL else "ended"
            with contextlib.suppress(RedisError):  # the lease ends without us
                await self._slots.release(session_id, epoch, status, session.received / SAMPLE_RATE)

    async def _send_away(self, connection: ServerConnection, session_id: str) -> None:
        """A gateway whose session another one goes on with, here."""
        message = SessionTerminated(session_id=session_id, reason="taken_over", recoverable=False)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await peer.sender(connection)(serialize(message))
        await peer.close(connection, CloseCode.GOING_AWAY, CLOSE_S)


def _port(server: Server) -> int:
    return next(iter(server.sockets)).getsockname()[1]


def main(settings: WorkerSettings) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit status."""
    logs.setup(settings.log_level, settings.log_format)

    async def run() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        # Inside the loop: gRPC's channels belong to the one they are made in.
        await Worker(settings).run(stop)

    try:
        uvloop.run(run())
    except (WorkerIdTaken, ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0
