"""
The routes of the gateway: WebSockets for live audio, and pages for whoever watches.
"""

import hmac
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import redis.asyncio
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import HTTPConnection

from dalston.gateway import health, metrics
from dalston.gateway.access.access import Access, AccessDenied
from dalston.gateway.calls.caller import Caller
from dalston.gateway.calls.connections import Calls
from dalston.gateway.protocols import PROTOCOLS, Native
from dalston.gateway.protocols.protocol import ClientProtocol, Opening
from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.read_rounds import Rounds
from dalston.gateway.transport.transport import Disconnected
from dalston.gateway.transport.websocket import WebSocketTransport
from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.capacity.slots import Slots, WorkerRecord
from dalston.orchestrator.process.request_ids import request_id
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Error

logger = logging.getLogger(__name__)

Protocols = Mapping[str, Callable[[Opening], ClientProtocol]]


@dataclass(frozen=True)
class Gateway:
    """The parts of one gateway, for its routes."""

    settings: GatewaySettings
    redis: "redis.asyncio.Redis"
    slots: Slots
    access: Access
    calls: Calls
    rounds: Rounds  # in which callers are read

    @classmethod
    def of(cls, settings: GatewaySettings) -> "Gateway":
        """The parts as the settings say. Raises KeysError."""
        client = redis_client(settings.redis_url)
        slots, access = Slots(client), Access(settings, client)
        return cls(settings, client, slots, access, Calls(slots, access, settings), Rounds())


def create_app(gateway: Gateway, lifespan: Any = None, protocols: Protocols = PROTOCOLS) -> FastAPI:
    """protocols: what is spoken, by path."""
    app = FastAPI(title="dalston", lifespan=lifespan, openapi_url=None)
    app.state.gateway = gateway
    app.add_exception_handler(AnyHTTPException, _refuse)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(RedisError, _redis_is_away)
    for path, protocol in protocols.items():
        app.add_api_websocket_route(path, _stream(protocol))
    app.add_api_websocket_route("/{path:path}", _nowhere)
    app.include_router(pages)
    return app


def _stream(protocol: Callable[[Opening], ClientProtocol]) -> Callable[[WebSocket], Any]:
    async def stream(websocket: WebSocket) -> None:
        gateway: Gateway = websocket.app.state.gateway
        await gateway.calls.serve(_caller(websocket, protocol, gateway))

    return stream


async def _nowhere(websocket: WebSocket) -> None:
    caller = _caller(websocket, Native, websocket.app.state.gateway)
    sentence = "no such path; live audio goes to /v1/audio/transcriptions/stream"
    with suppress(Disconnected):
        await caller.accept()
        await caller.tell(Error(code="invalid_parameter", message=sentence, recoverable=False))
        await caller.close(CloseCode.INVALID_PATH, "Invalid path")


def _caller(
    websocket: WebSocket, protocol: Callable[[Opening], ClientProtocol], gateway: Gateway
) -> Caller:
    opening = Opening(websocket.query_params.multi_items(), websocket.headers)
    transport = WebSocketTransport(websocket, gateway.rounds)
    return Caller(transport, protocol(opening), opening, gateway.settings.frame_bytes)


async def _refuse(_: Request, error: AnyHTTPException) -> JSONResponse:
    body = {"detail": error.detail, "request_id": request_id.get()}
    return JSONResponse(body, error.status_code, error.headers)


async def _redis_is_away(_: Request, error: Exception) -> JSONResponse:
    logger.error("Redis: %s", error)
    return JSONResponse({"detail": f"Redis: {error}", "request_id": request_id.get()}, 503)


# --- who may see a page ---------------------------------------------------------------------------


async def _gateway(connection: HTTPConnection) -> Gateway:
    return connection.app.state.gateway


Here = Annotated[Gateway, Depends(_gateway)]
Authorization = Annotated[str, Header()]


async def _caller_with_key(request: Request, here: Here) -> None:
    try:
        await here.access.holder(request.headers, request.query_params)
    except AccessDenied as error:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        raise HTTPException(error.status, str(error), headers) from None


async def _admin(here: Here, authorization: Authorization = "") -> None:
    if here.settings.admin_key is None:
        raise HTTPException(403, "no DALSTON_ADMIN_KEY is set")
    expected = f"Bearer {here.settings.admin_key.get_secret_value()}"
    if not hmac.compare_digest(authorization.encode(), expected.encode()):
        sentence = "the admin key is needed: Authorization: Bearer KEY"
        raise HTTPException(401, sentence, {"WWW-Authenticate": "Bearer"})


async def _operator(here: Here, authorization: Authorization = "") -> None:
    """Who watches: everybody where everything is open, else the admin."""
    if here.settings.admin_key or not here.access.open:
        await _admin(here, authorization)


# --- pages ----------------------------------------------------------------------------------------

pages = APIRouter()


@pages.get("/health")
async def basic_health(here: Here) -> JSONResponse:
    return JSONResponse(*await health.health(here.slots, here.calls))


@pages.get("/health/extended", dependencies=[Depends(_operator)])
async def extended_health(here: Here) -> JSONResponse:
    return JSONResponse(*await health.extended_health(here.slots, here.calls))


@pages.get("/metrics", dependencies=[Depends(_operator)])
async def metrics_page(here: Here) -> Response:
    workers, waiting = None, 0
    with suppress(RedisError):  # what we know ourselves is worth telling all the same
        workers, waiting = await here.slots.workers(), await here.slots.waiting()
    calls = here.calls
    state = metrics.GatewayState(
        len(calls),
        calls.sessions,
        calls.held_bytes,
        calls.draining,
        here.slots.errors,
        workers,
        waiting,
    )
    return Response(metrics.page(state), media_type=metrics.CONTENT_TYPE)


@pages.get("/v1/realtime/status", dependencies=[Depends(_caller_with_key)])
async def status(here: Here) -> JSONResponse:
    return JSONResponse(capacity(await here.slots.workers()))


@pages.get("/v1/realtime/sessions", dependencies=[Depends(_admin)])
async def sessions(here: Here) -> JSONResponse:
    return JSONResponse({"sessions": await here.slots.sessions()})


@pages.delete("/v1/realtime/sessions/{session_id}", dependencies=[Depends(_admin)])
async def terminate(session_id: str, here: Here) -> JSONResponse:
    if all(session["session_id"] != session_id for session in await here.slots.sessions()):
        raise HTTPException(404, f"no active session {session_id}")
    # Any gateway may have it; the one that does ends it.
    await here.slots.announce({"type": "session.terminate", "session_id": session_id})
    return JSONResponse({"session_id": session_id, "status": "terminating"}, 202)


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
