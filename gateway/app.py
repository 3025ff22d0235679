"""
The edge: HTTP and WebSocket for clients. Everything live is in calls/; here are the
routes, what is done by the clock, and the way out.
"""

import asyncio
import hmac
import logging
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated, Any

import uvicorn
import uvloop
from fastapi import Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException as AnyHTTPException

from dalston.gateway import health, metrics
from dalston.gateway.access.access import Access, Refused
from dalston.gateway.access.keys import KeysError
from dalston.gateway.calls.connections import Connections
from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.handshake import handshake_within
from dalston.gateway.transport.request_ids import with_request_ids
from dalston.gateway.transport.uvicorn_protocol import Direct
from dalston.orchestrator.capacity.redis_client import (
    UnsupportedRedis,
    redis_client,
    refuse_cluster,
)
from dalston.orchestrator.capacity.slots import LEASE_S, Slots, WorkerRecord
from dalston.orchestrator.process import heap, logs, traces
from dalston.orchestrator.process.request_ids import named, request_id
from dalston.orchestrator.protocol.messages import End, Error, serialize
from dalston.orchestrator.worker.settings import LOOPBACK

logger = logging.getLogger(__name__)

RENEW_S = LEASE_S / 4
EXPIRE_S = 5.0
DEAF_MS = 30_000  # without an acknowledgement of what was sent
LAST_FINALS_S = 5.0  # what sessions have to tell when a drain ends them


def create_app(settings: GatewaySettings) -> FastAPI:
    """Raises KeysError."""
    client = redis_client(settings.redis_url)
    slots = Slots(client)
    access = Access(settings, client)
    connections = Connections(slots, access, settings)
    if access.open and settings.host not in LOOPBACK:
        logger.warning("whoever reaches %s is let in: set DALSTON_API_KEYS", settings.host)

    async def expire() -> None:
        metrics.LEASES_EXPIRED.inc(await slots.expire())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        works = (
            _every(RENEW_S, connections.renew),
            _every(EXPIRE_S, expire),
            _every(settings.worker_silent_seconds / 5, connections.look_after),
            _follow_events(slots, connections),
            heap.keep_trimmed(),
        )
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.aclose()

    app = FastAPI(title="dalston", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.connections = connections
    app.state.redis = client

    @app.exception_handler(AnyHTTPException)
    async def refuse(_: Request, error: AnyHTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        body = {"detail": error.detail, "request_id": request_id.get()}
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(RedisError)
    async def away(_: Request, error: RedisError) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        logger.error("Redis: %s", error)
        return JSONResponse({"detail": f"Redis: {error}", "request_id": request_id.get()}, 503)

    @app.websocket("/v1/audio/transcriptions/stream")
    async def stream(websocket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await connections.serve(websocket)

    @app.websocket("/{path:path}")
    async def nowhere(websocket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction]
        await websocket.accept()
        sentence = "no such path; live audio goes to /v1/audio/transcriptions/stream"
        error = Error(code="invalid_parameter", message=sentence, recoverable=False)
        await websocket.send_text(serialize(named(error)))
        await websocket.close(1008, "Invalid path")

    @app.get("/health")
    async def basic_health() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(*await health.health(slots, connections))

    async def caller(request: Request) -> None:
        try:
            await access.caller(request.headers, request.query_params)
        except Refused as error:
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            raise HTTPException(error.status, str(error), headers) from None

    @app.get("/v1/realtime/status", dependencies=[Depends(caller)])
    async def status() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(capacity(await slots.workers()))

    def admin(authorization: Annotated[str, Header()] = "") -> None:
        if settings.admin_key is None:
            raise HTTPException(403, "no DALSTON_ADMIN_KEY is set")
        expected = f"Bearer {settings.admin_key.get_secret_value()}"
        if not hmac.compare_digest(authorization.encode(), expected.encode()):
            sentence = "the admin key is needed: Authorization: Bearer KEY"
            raise HTTPException(401, sentence, {"WWW-Authenticate": "Bearer"})

    def operator(authorization: Annotated[str, Header()] = "") -> None:
        """Who watches: everybody where everything is open, else the admin."""
        if settings.admin_key or not access.open:
            admin(authorization)

    @app.get("/health/extended", dependencies=[Depends(operator)])
    async def extended_health() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(*await health.extended_health(slots, connections))

    @app.get("/metrics", dependencies=[Depends(operator)])
    async def metrics_page() -> Response:  # pyright: ignore[reportUnusedFunction]
        workers, waiting = None, 0
        with suppress(RedisError):  # what we know ourselves is worth telling all the same
            workers, waiting = await slots.workers(), await slots.waiting()
        state = metrics.State(
            len(connections),
            connections.sessions,
            connections.held_bytes,
            connections.draining,
            slots.errors,
            workers,
            waiting,
        )
        return Response(metrics.page(state), media_type=metrics.CONTENT_TYPE)

    @app.get("/v1/realtime/sessions", dependencies=[Depends(admin)])
    async def sessions() -> Any:  # pyright: ignore[reportUnusedFunction]
        return {"sessions": await slots.sessions()}

    @app.delete("/v1/realtime/sessions/{session_id}", dependencies=[Depends(admin)])
    async def terminate(session_id: str) -> Any:  # pyright: ignore[reportUnusedFunction]
        if all(session["session_id"] != session_id for session in await slots.sessions()):
            raise HTTPException(404, f"no active session {session_id}")
        # Any gateway may have it; the one that does ends it.
        event = {"type": "session.terminate", "session_id": session_id}
        await slots.announce(event)
        return JSONResponse({"session_id": session_id, "status": "terminating"}, 202)

    return app


def capacity(workers: list[WorkerRecord]) -> dict[str, Any]:
    """The body of /v1/realtime/status. Only workers that take sessions count as capacity."""
    serving = [worker for worker in workers if worker.status in ("ready", "busy")]
    total = sum(worker.capacity for worker in serving)
    available = sum(max(0, worker.capacity - worker.active_sessions) for worker in serving)
    return {
        "status": "unavailable" if not serving else "ready" if available else "at_capacity",
        "total_capacity": total,
        "active_sessions": sum(worker.active_sessions for worker in workers),
        "available_capacity": available,
        "workers": [
            {
                "id": worker.worker_id,
                "status": worker.status,
                "capacity": worker.capacity,
                "active_sessions": worker.active_sessions,
            }
            for worker in workers
        ],
    }


async def _every(seconds: float, work: Any) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except RedisError as error:
            logger.warning("Redis: %s", error)


async def _follow_events(slots: Slots, connections: Connections) -> None:
    """End sessions that an admin wants ended. Events are hints: one that is lost is no harm."""

    async def told(event: Mapping[str, str]) -> None:
        if event.get("type") == "session.terminate":
            await connections.end(event["session_id"], End("terminated"))

    # A Redis that is back may have lost our slots.
    await slots.follow(connections.restore, told)


class _Server(uvicorn.Server):
    """uvicorn with our way out: it would close every stream at the first signal, and looks ten
    times a second whether it has to end."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        self.should_exit = True
        self._leaving.set()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # it makes the header that tells the date
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._leaving.wait()


async def serve(
    settings: GatewaySettings,
    stop: asyncio.Event,
    listening: Callable[[int], None] = lambda _: None,
) -> None:
    """Run a gateway until `stop`, then drain. `listening` is told the port.

    Raises KeysError and UnsupportedRedis.
    """
    app = create_app(settings)
    try:
        await refuse_cluster(app.state.redis)
    except UnsupportedRedis:
        await app.state.redis.aclose()
        raise
    except RedisError:
        pass  # it may come later than we
    connections: Connections = app.state.connections
    config = uvicorn.Config(
        with_request_ids(metrics.with_metrics(app)),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        http=handshake_within(settings.handshake_seconds),
        ws=Direct,
        ws_max_size=settings.frame_bytes,
        # Deflate costs each stream 300 KB and most of its processor time, for speech that does
        # not compress; a proxy in front can offer it.
        ws_per_message_deflate=False,
        # Pings keep proxies from forgetting the connection. An answer may wait behind audio that
        # we do not read yet; whether a client lives shows by what it sends.
        ws_ping_timeout=None,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config)

    async def leave() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        logger.info("the gateway listens at %s:%d", settings.host, port)
        listening(port)
        await stop.wait()
        connections.draining = True
        logger.info("draining %d connections", len(connections))
        await _until_empty(connections, settings.drain_seconds)
        await connections.end_all()
        await _until_empty(connections, LAST_FINALS_S)
        server.leave()

    leaving = asyncio.create_task(leave())
    try:
        listener = config.bind_socket()
        # Inherited by every connection: one whose client takes nothing, or is gone without a word,
        # ends by itself, and what was meant for it is dropped.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAF_MS)
        await server.serve([listener])
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


async def _until_empty(connections: Connections, seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while len(connections) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)


def main(settings: GatewaySettings) -> int:
    """Run a gateway until SIGTERM or SIGINT; the exit status."""
    logs.setup(settings.log_level, settings.log_format)

    async def run() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await serve(settings, stop)

    try:
        instance = f"{socket.gethostname()}:{settings.port}"
        traces.setup("dalston-gateway", instance, settings.otlp_endpoint)
        uvloop.run(run())
    except traces.TracesError as error:
        logger.error("%s", error)
        return 1
    except KeysError as error:
        print(f"DALSTON_API_KEYS: {error}", file=sys.stderr)
        return 2
    except SystemExit:  # uvicorn's way to say that the port is taken; it has logged why
        return 1
    except UnsupportedRedis as error:
        logger.error("%s", error)
        return 1
    return 0
