"""
The worker process: sessions over WebSocket at /session, its health at /health, its metrics at
/metrics, its record in Redis.

Sessions (sessions.py) share one event loop; what they ask of the models leaves it at once.
"""

import asyncio
import contextlib
import hmac
import http
import json
import logging
import math
import secrets
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from urllib.parse import parse_qsl, urlsplit

import uvloop
from picows import (
    WSListener,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,  # pyright: ignore[reportUnknownVariableType]
)
from redis.exceptions import RedisError

from dalston.orchestrator.capacity.slots import STALE_S, Slot, Slots, WorkerIdTaken, redis_client
from dalston.orchestrator.capacity.workers import Registration
from dalston.orchestrator.inference.fleet import Fleet
from dalston.orchestrator.inference.triton_client import InferenceError
from dalston.orchestrator.process import heap, logs, traces
from dalston.orchestrator.process.environment import LOOPBACK
from dalston.orchestrator.protocol import introduction, websocket_peer
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.introduction import Introduction
from dalston.orchestrator.protocol.messages import LONGEST_MESSAGE
from dalston.orchestrator.protocol.websocket_peer import Peer, PeerClosed
from dalston.orchestrator.worker import metrics
from dalston.orchestrator.worker.gpu_memory import gpu_memory
from dalston.orchestrator.worker.memory_limit import MemoryLimit
from dalston.orchestrator.worker.sessions import Sessions
from dalston.orchestrator.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_BEGAN = time.monotonic()  # this process
VERSION = version("dalston")  # read once: later there may be no descriptor to read it with

LAST_FINALS_S = 5.0  # what sessions have to tell when a drain ends them
CLOSE_S = 1.0  # for connections that are still there when a worker ends
# What the kernel holds of a connection (Linux doubles it). What is there is read at once, and the
# room for it is kept: without a limit a burst would cost megabytes as long as the connection lives.
RECEIVED_BYTES = 1 << 17


class _Connection(Peer):
    """One that has come to this worker, and the task that serves it."""

    def __init__(self, worker: "Worker", request: WSUpgradeRequest):
        super().__init__(LONGEST_MESSAGE)
        self._worker = worker
        self.url = urlsplit(request.path.decode(errors="replace"))
        self.headers = request.headers
        self.introduction: Introduction | None = None  # of a gateway that has to prove itself yet

    def on_ws_connected(self, transport: WSTransport) -> None:
        super().on_ws_connected(transport)
        self._worker.on_connection(self)


class Worker:
    def __init__(self, settings: WorkerSettings):
        self._settings = settings
        token = settings.triton_token.get_secret_value() if settings.triton_token else None
        self._tritons = Fleet(settings.triton_urls, self._out_of_memory, token)
        self._memory = MemoryLimit(settings.max_sessions)
        self._redis = redis_client(settings.redis_url)
        self._slots = Slots(self._redis)
        self._instance = secrets.token_hex(8)
        self._registered_at = -math.inf
        self._endpoint = ""  # as it is registered
        self._unhealthy: str | None = "starting"
        self._less_room = asyncio.Event()  # than Redis knows of
        request_speech = self._tritons.request_speech
        if settings.vad == "worker":
            try:
                from dalston.orchestrator.inference.local_vad import LocalVad
            except ModuleNotFoundError as error:
                raise ValueError(f"DALSTON_VAD=worker needs onnxruntime: {error}") from None
            if settings.vad_model is None:
                raise ValueError("DALSTON_VAD=worker needs DALSTON_VAD_MODEL")
            request_speech = LocalVad(settings.vad_model).request_speech
        self._sessions = Sessions(
            settings, request_speech, self._tritons, self._slots, self._memory
        )
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def run(
        self, stop: asyncio.Event, listening: Callable[[int], None] = lambda _: None
    ) -> None:
        """Serve until `stop`, then drain. `listening` is told the port. Raises WorkerIdTaken."""
        server = await ws_create_server(
            self._welcome,
            self._settings.host,
            self._settings.port,
            websocket_handshake_timeout=self._settings.handshake_seconds,
            max_frame_size=LONGEST_MESSAGE,
            **websocket_peer.USUAL,
        )
        try:
            for listener in server.sockets:  # inherited by every connection
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED_BYTES)
            port: int = server.sockets[0].getsockname()[1]
            if self._settings.secret is None and self._settings.host not in LOOPBACK:
                logger.warning(
                    "whoever reaches %s is let in: set DALSTON_WORKER_SECRET", self._settings.host
                )
            self._endpoint = self._settings.advertised(port)
            logger.info("worker %s listens at port %d", self._settings.worker_id, port)
            listening(port)
            beating = [
                asyncio.create_task(self._beat(port)),
                asyncio.create_task(self._tell_of_less_room(port)),
                # A Redis that is back has lost what it knew: it is told at once.
                asyncio.create_task(self._slots.server.follow(lambda: self._register(port))),
                asyncio.create_task(heap.keep_trimmed()),
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
            server.close()
            await self._close_connections()
            with contextlib.suppress(RedisError):
                await self._slots.unregister(self._settings.worker_id, self._instance)
        finally:
            server.close()
            await self._redis.aclose()
            await self._tritons.close()

    async def _close_connections(self) -> None:
        serving = dict(self._connections)
        await asyncio.gather(
            *(there.close(CloseCode.GOING_AWAY, "", CLOSE_S) for there in serving.values())
        )
        await asyncio.gather(*serving, return_exceptions=True)

    async def _drain(self, port: int) -> None:
        """No new sessions; those that run have drain_seconds to end by themselves."""
        logger.info("draining %d sessions", len(self._sessions))
        self._sessions.draining = True
        with contextlib.suppress(RedisError):
            await self._register(port)
        await self._until_empty(self._settings.drain_seconds)
        await self._sessions.hand_over()
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
        """Register at once when there is less room: until then gateways give away slots that do not
        exist."""
        while True:
            await self._less_room.wait()
            self._less_room.clear()
            try:
                await self._register(port)
            except RedisError as error:
                logger.warning("Redis: %s", error)

    async def _register(self, port: int) -> None:
        if not self._sessions.variants:
            return  # nothing to offer yet
        used, total = await read_gpu_memory(self._settings.triton_metrics_url)
        variants, running = self._sessions.variants, self._sessions.running
        asleep = self._asleep()
        awake = variants.keys() - asleep
        languages = {code for loaded in variants.values() for code in loaded.languages}
        registration = Registration(
            worker_id=self._settings.worker_id,
            instance=self._instance,
            endpoint=self._endpoint,
            # A worker whose models fail takes no sessions either.
            status="draining" if self._sessions.draining or self._unhealthy else "ready",
            capacity=self._memory.sessions,
            models=list(variants),
            models_loaded=sorted({variants[name].model_id for name in awake}),
            languages=[*sorted(languages), "auto"],
            version=VERSION,
            gpu_memory_used=used,
            gpu_memory_total=total,
            asleep=asleep,
            fast_share=self._settings.fast_share,
            running_s=time.monotonic() - _BEGAN,
            checkpoints={name: loaded.model_id for name, loaded in variants.items()},
        )
        served = {id: here.served() for id, here in running.items()}
        try:
            await self._slots.heartbeat(registration, served)
        except WorkerIdTaken as error:
            # Where this worker is known, it may be no living process that has written there.
            if time.monotonic() - self._registered_at < 2 * STALE_S:
                return logger.error("%s", error)
            if not await nobody_listens(error.endpoint):
                raise
            logger.info("the worker that was %s is dead", error.endpoint)
            await self._slots.heartbeat(registration, served, dead=error.instance)
        self._registered_at = time.monotonic()
        await self._slots.renew(
            [Slot(id, "", "", here.epoch) for id, here in running.items() if here.direct]
        )

    async def _look_after_models(self) -> None:
        """Whether sessions would work: by asking the models, not whether they are ready."""
        try:
            self._sessions.variants = await self._tritons.variants()
        except InferenceError as error:
            if self._unhealthy != str(error):
                logger.warning("not healthy: %s", error)
            self._unhealthy = str(error)
        else:
            if self._unhealthy:
                logger.info("healthy: %s", ", ".join(self._sessions.variants))
            self._unhealthy = None

    def _asleep(self) -> list[str]:
        """The variants that are unloaded, so that a session would have to wait for them."""
        return sorted(name for name in self._sessions.variants if self._tritons.asleep(name))

    def _out_of_memory(self) -> None:
        metrics.OUT_OF_MEMORY.inc()
        if self._memory.ran_out(math.ceil(self._sessions.used)):
            logger.warning("a model ran out of memory: %d sessions at most", self._memory.sessions)
            self._less_room.set()

    # HTTP and WebSocket.

    def _welcome(self, request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener:
        """GET /health and /metrics without an upgrade; everything else is a WebSocket, sessions for
        those who know the secret."""
        connection = _Connection(self, request)
        path = connection.url.path
        if "upgrade" in ",".join(request.headers.getall("Connection", ())).lower():
            if path == "/session" and not self._may_have_sessions(connection):
                return self._introduce(connection)
            return connection
        if path == "/metrics":
            return _answer(http.HTTPStatus.OK, metrics.CONTENT_TYPE, self._metrics())
        if path != "/health":
            sentence = b"only /health, /metrics and /session\n"
            return _answer(http.HTTPStatus.NOT_FOUND, "text/plain", sentence)
        status = http.HTTPStatus.OK
        if self._unhealthy or self._sessions.draining:
            status = http.HTTPStatus.SERVICE_UNAVAILABLE
        return _answer(status, "application/json", json.dumps(self._health()).encode())

    def _metrics(self) -> bytes:
        state = metrics.WorkerState(
            self._memory.sessions,
            self._unhealthy is None,
            self._sessions.draining,
            self._slots.errors,
            self._tritons.pending,
            self._tritons.sleeping(),
        )
        return metrics.page(state, self._sessions.measured)

    def _may_have_sessions(self, connection: _Connection) -> bool:
        if self._settings.secret is None:
            return True
        shown = ",".join(connection.headers.getall("Authorization", ()))
        expected = f"Bearer {self._settings.secret.get_secret_value()}"
        return hmac.compare_digest(shown.encode(errors="replace"), expected.encode())

    def _introduce(self, connection: _Connection) -> WSUpgradeResponseWithListener:
        """Let a gateway prove that it has the secret, having proven it ourselves."""
        assert self._settings.secret
        secret = self._settings.secret.get_secret_value()
        number = connection.headers.get(introduction.NONCE_HEADER, "")
        connection.introduction = introduction.introduced(secret, number, self._endpoint)
        if connection.introduction is None:
            sentence = "sessions are for gateways with this worker's DALSTON_WORKER_SECRET\n"
            return _answer(http.HTTPStatus.UNAUTHORIZED, "text/plain", sentence.encode())
        headers = {introduction.PROOF_HEADER: connection.introduction.answer()}
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_101_response(headers), connection
        )

    async def _is_proven(self, connection: _Connection) -> bool:
        if connection.introduction is None:
            return True
        try:
            async with asyncio.timeout(self._settings.handshake_seconds):
                frame = await connection.received()
        except TimeoutError:
            return False
        return connection.introduction.is_first_frame(frame)

    def _health(self) -> dict[str, object]:
        if self._sessions.draining:
            return {"status": "draining", "active_sessions": len(self._sessions)}
        if self._unhealthy:
            return {"status": "unhealthy", "reason": self._unhealthy}
        return {
            "status": "healthy",
            "active_sessions": len(self._sessions),
            "capacity": self._memory.sessions,
            "models": sorted(self._sessions.variants),
            "asleep": self._asleep(),
        }

    def on_connection(self, connection: _Connection) -> None:
        """One that has just been opened. Its task's context is its own."""
        task = asyncio.create_task(self._serve(connection))
        self._connections[task] = connection
        task.add_done_callback(self._connections.pop)

    async def _serve(self, connection: _Connection) -> None:
        try:
            with contextlib.suppress(PeerClosed):
                if connection.url.path == "/health":
                    await connection.send(json.dumps(self._health()))
                elif connection.url.path == "/session":
                    if not await self._is_proven(connection):
                        logger.warning("refused: it has not this worker's DALSTON_WORKER_SECRET")
                        return await connection.close(1008, "DALSTON_WORKER_SECRET")
                    query = dict(parse_qsl(connection.url.query))
                    parent = connection.headers.get(traces.HEADER, "")
                    return await self._sessions.serve(connection, query, parent)
                else:
                    return await connection.close(1008, "Invalid path")
            await connection.close(CloseCode.NORMAL)
        except Exception:
            logger.exception("a connection failed")
            await connection.close(CloseCode.INTERNAL)


async def nobody_listens(endpoint: str) -> bool:
    """Whether a worker is dead for certain: its machine says that there is none."""
    url = urlsplit(endpoint)
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        pass
    return False


async def read_gpu_memory(url: str | None) -> tuple[str | None, str | None]:
    """Used and total, as "4.2GB", as Triton's metrics page tells it; nothing without a page."""
    if url is None:
        return None, None

    def read() -> str:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.read().decode()

    try:
        return gpu_memory(await asyncio.to_thread(read))
    except (OSError, ValueError) as error:
        logger.warning("%s: %s", url, error)
        return None, None


def _answer(
    status: http.HTTPStatus, content_type: str, body: bytes
) -> WSUpgradeResponseWithListener:
    response = WSUpgradeResponse.create_ok_response(body, {"Content-Type": content_type})
    response.status = status
    return WSUpgradeResponseWithListener(response, None)


def main(settings: WorkerSettings) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit status."""
    logs.setup(settings.log_level, settings.log_format)

    async def run() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await Worker(settings).run(stop)

    try:
        traces.setup("dalston-worker", settings.worker_id, settings.otlp_endpoint)
        uvloop.run(run())
    except (WorkerIdTaken, ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0
