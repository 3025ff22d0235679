"""
The gateway as a process: uvicorn, what is done by the clock, signals, and the way out.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI
from redis.exceptions import RedisError
from starlette.types import ASGIApp

from dalston.gateway import metrics
from dalston.gateway.access.secret_file import KeysError
from dalston.gateway.access.sites import Sites, for_sites, is_loopback
from dalston.gateway.app import Gateway, Protocols, create_app
from dalston.gateway.calls.connections import Calls
from dalston.gateway.crowds import Crowd, with_limits
from dalston.gateway.protocols import PROTOCOLS
from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.handshake import handshake_within
from dalston.gateway.transport.request_ids import with_request_ids
from dalston.gateway.transport.uvicorn_protocol import DirectProtocol
from dalston.gateway.wyoming import wyoming_port
from dalston.orchestrator.capacity.redis_client import UnsupportedRedis, look_at
from dalston.orchestrator.capacity.slots import LEASE_S, Slots
from dalston.orchestrator.process import heap, logs, traces
from dalston.orchestrator.protocol.messages import End

logger = logging.getLogger(__name__)

RENEW_S = LEASE_S / 4
EXPIRE_S = 5.0
GO_ON_S = 1.0  # after a task failed that is done by the clock
DEAF_MS = 30_000  # without an acknowledgement of what was sent
# In the kernel, of what a client sent and nobody has read: enough for the fastest audio at 1.5
# times real time over a line that answers after 0.2 s.
RECEIVE_BYTES = 128 << 10
LAST_FINALS_S = 5.0  # what sessions have to tell when a drain ends them


async def serve(
    settings: GatewaySettings,
    stop: asyncio.Event,
    listening: Callable[[int], None] = lambda _: None,
    protocols: Protocols = PROTOCOLS,
) -> None:
    """Run a gateway until `stop`, then drain. `listening` is told the port.

    Raises KeysError and UnsupportedRedis.
    """
    gateway = Gateway.of(settings)
    if gateway.access.open and not is_loopback(settings.reached_at):
        logger.warning("whoever reaches %s is let in: DALSTON_ALLOW_NO_KEYS", settings.reached_at)
    try:
        await look_at(gateway.redis)
    except UnsupportedRedis:
        await gateway.redis.aclose()
        raise
    except RedisError:
        pass  # it may come later than we
    sites = Sites(settings, gateway.access.open)
    crowd = Crowd(settings.connections, settings.connections_per_address)
    app = for_sites(create_app(gateway, _lifespan, protocols), sites)
    config = _configured(with_limits(metrics.with_metrics(app), crowd), settings)
    server = _Server(config)
    leaving = asyncio.create_task(_leave(server, gateway, stop, listening))
    try:
        listener = _inherited(_listener(config, settings))
        async with wyoming_port(gateway, crowd, lambda port: _inherited(_bound(settings, port))):
            await server.serve([listener])
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


def _inherited(listener: socket.socket) -> socket.socket:
    """With what every connection inherits."""
    # One whose client takes nothing, or is gone without a word, ends by itself, and what was meant
    # for it is dropped.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAF_MS)
    # As much as a client may have on the way to us, whose pings wait after it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return listener


def _bound(settings: GatewaySettings, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, port), family=family)
    except OSError as error:
        logger.error("DALSTON_WYOMING_PORT: %s:%d: %s", settings.host, port, error)
        raise SystemExit(1) from None


def _listener(config: uvicorn.Config, settings: GatewaySettings) -> socket.socket:
    if settings.listener is None:
        return config.bind_socket()
    try:
        return socket.socket(fileno=settings.listener)
    except OSError as error:
        logger.error("DALSTON_LISTENER: %d is no socket: %s", settings.listener, error)
        raise SystemExit(1) from None


def _configured(app: ASGIApp, settings: GatewaySettings) -> uvicorn.Config:
    return uvicorn.Config(
        with_request_ids(app),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        http=handshake_within(settings.handshake_seconds),
        # Whose word is taken for where a caller is.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=",".join(settings.trusted_proxies),
        ws=DirectProtocol,
        ws_max_size=settings.frame_bytes,
        # Deflate costs each stream 300 KB and most of its processor time, for speech that does
        # not compress; a proxy in front can offer it.
        ws_per_message_deflate=False,
        # Pings keep proxies from forgetting the connection. An answer may be queued after
        # audio that we do not read yet; what a client sends shows that it lives.
        ws_ping_timeout=None,
        timeout_graceful_shutdown=3,
    )


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


async def _leave(
    server: _Server, gateway: Gateway, stop: asyncio.Event, listening: Callable[[int], None]
) -> None:
    """Say that it listens, wait for `stop`, and drain."""
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    logger.info("the gateway listens at %s:%d", gateway.settings.host, port)
    listening(port)
    await stop.wait()
    calls = gateway.calls
    calls.draining = True
    logger.info("draining %d connections", len(calls))
    await _until_empty(calls, gateway.settings.drain_seconds)
    await calls.end_all()
    await _until_empty(calls, LAST_FINALS_S)
    server.leave()


async def _until_empty(calls: Calls, seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while len(calls) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)


# --- what is done by the clock --------------------------------------------------------------------


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    gateway: Gateway = app.state.gateway
    slots, calls = gateway.slots, gateway.calls

    async def expire() -> None:
        metrics.LEASES_EXPIRED.inc(await slots.expire())

    async def follow() -> None:
        await _follow_events(slots, calls)

    look_s = gateway.settings.worker_silent_seconds / 5
    tasks = [
        asyncio.create_task(kept_going(name, work))
        for name, work in {
            "renew leases": lambda: _every(RENEW_S, calls.renew),
            "expire leases": lambda: _every(EXPIRE_S, expire),
            "look after workers": lambda: _every(look_s, calls.look_after),
            "follow events": follow,
            "trim memory": heap.keep_trimmed,
        }.items()
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await gateway.redis.aclose()


async def kept_going(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work`, which never returns, again and again: what fails once is needed all the same."""
    while True:
        try:
            await work()
        except Exception:
            metrics.TASK_FAILURES.labels(name).inc()
            logger.exception("%s: failed, and goes on", name)
        await asyncio.sleep(GO_ON_S)


async def _every(seconds: float, work: Any) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except RedisError as error:
            logger.warning("Redis: %s", error)


async def _follow_events(slots: Slots, calls: Calls) -> None:
    """End sessions that an admin wants ended. Events are hints: one that is lost is no harm."""

    async def on_event(event: Mapping[str, str]) -> None:
        if event.get("type") == "session.terminate":
            session_id = event.get("session_id", "")
            if await calls.end(session_id, End("terminated")):
                await slots.say_ending(session_id)

    # A Redis that is back may have lost our slots.
    await slots.server.follow(calls.restore, on_event)


# --- the command ----------------------------------------------------------------------------------


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
