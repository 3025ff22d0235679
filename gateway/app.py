"""
The routes of the gateway: WebSockets for live audio, and pages for whoever watches. Those for
recorded audio are in files/, one file a service.
"""

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, get_args

import msgspec
import redis.asyncio
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import HTTPConnection

from dalston.gateway import health, metrics
from dalston.gateway.access import tokens
from dalston.gateway.access.access import Access, AccessDenied
from dalston.gateway.access.keys import DEFAULT_SCOPES, Scope
from dalston.gateway.access.tokens import TokenRefused
from dalston.gateway.calls.caller import Caller
from dalston.gateway.calls.connections import DENIED, Calls
from dalston.gateway.calls.ending import end_session
from dalston.gateway.files import deepgram, elevenlabs, openai
from dalston.gateway.files.kept import Transcripts
from dalston.gateway.files.transcriber import Transcriber
from dalston.gateway.listeners import Heard, listen
from dalston.gateway.protocols import PROTOCOLS, Native
from dalston.gateway.protocols.protocol import ClientProtocol, Opening
from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.read_rounds import Rounds
from dalston.gateway.transport.transport import Disconnected
from dalston.gateway.transport.websocket import WebSocketTransport
from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.capacity.slots import Slots
from dalston.orchestrator.capacity.workers import WorkerRecord
from dalston.orchestrator.process.request_ids import request_id
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Error, Frame, refusal

logger = logging.getLogger(__name__)

LONGEST_BODY = 4096  # bytes of an HTTP request's
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
    transcriber: Transcriber
    transcripts: Transcripts

    @classmethod
    def of(cls, settings: GatewaySettings) -> "Gateway":
        """The parts as the settings say. Raises KeysError."""
        client = redis_client(settings.redis_url)
        slots = Slots(client, settings.strategy, settings.resume_seconds)
        access = Access(settings, client)
        calls = Calls(slots, access, settings)
        transcriber = Transcriber(calls, access, settings)
        # Who wants nothing that is said kept in Redis wants no transcript there either.
        transcripts = Transcripts(client, settings.transcript_seconds if settings.resume else 0)
        return cls(settings, client, slots, access, calls, Rounds(), transcriber, transcripts)


def create_app(gateway: Gateway, lifespan: Any = None, protocols: Protocols = PROTOCOLS) -> FastAPI:
    """protocols: what is spoken, by path."""
    # A path has one spelling: none with a slash more is sent to it.
    app = FastAPI(title="dalston", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.gateway = gateway
    app.add_exception_handler(AnyHTTPException, _refuse)  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(RedisError, _redis_is_away)
    for path, protocol in protocols.items():
        app.add_api_websocket_route(path, _stream(protocol))
    app.add_api_websocket_route("/v1/realtime/heard/{name}", _listen)
    app.add_api_websocket_route("/{path:path}", _nowhere)
    for service in (deepgram, elevenlabs, openai):
        app.include_router(service.routes)
    app.include_router(pages)
    return app


def _stream(protocol: Callable[[Opening], ClientProtocol]) -> Callable[[WebSocket], Any]:
    async def stream(websocket: WebSocket) -> None:
        gateway: Gateway = websocket.app.state.gateway
        opening = _opening(websocket)
        speaks = protocol(opening)
        if speaks.topic is None:
            return await gateway.calls.serve(_caller(websocket, speaks, opening, gateway))
        heard = Heard(gateway.redis)

        def tell(frame: Frame) -> None:
            if speaks.topic and isinstance(frame, str):
                heard.say(speaks.topic, frame)

        try:
            await gateway.calls.serve(_caller(websocket, speaks, opening, gateway, tell))
        finally:
            await heard.end(speaks.topic or "")

    return stream


async def _listen(websocket: WebSocket, name: str) -> None:
    """Tell what is heard of a call that has this name."""
    gateway: Gateway = websocket.app.state.gateway
    opening = _opening(websocket)
    caller = _caller(websocket, Native(opening), opening, gateway)
    with suppress(Disconnected):
        try:
            await gateway.access.holder(opening.headers, dict(opening.query), "stream", "read")
            await listen(gateway.redis, name, caller, gateway.settings.reader_seconds)
        except AccessDenied as denied:
            await caller.open()
            await caller.refuse(refusal(denied.code, str(denied)), DENIED[denied.code])


async def _nowhere(websocket: WebSocket) -> None:
    opening = _opening(websocket)
    caller = _caller(websocket, Native(opening), opening, websocket.app.state.gateway)
    sentence = "no such path; live audio goes to /v1/audio/transcriptions/stream"
    with suppress(Disconnected):
        await caller.open()
        await caller.tell(Error(code="invalid_parameter", message=sentence, recoverable=False))
        await caller.close(CloseCode.INVALID_PATH, "Invalid path")


def _opening(websocket: WebSocket) -> Opening:
    return Opening(websocket.query_params.multi_items(), websocket.headers, time.time)


def _caller(
    websocket: WebSocket,
    protocol: ClientProtocol,
    opening: Opening,
    gateway: Gateway,
    told: Callable[[Frame], None] | None = None,
) -> Caller:
    transport = WebSocketTransport(websocket, gateway.rounds, told)
    return Caller(transport, protocol, opening, gateway.settings.frame_bytes)


async def _refuse(_: Request, error: AnyHTTPException) -> JSONResponse:
    body = {"detail": error.detail, "request_id": request_id.get()}
    return JSONResponse(body, error.status_code, error.headers)


async def _redis_is_away(_: Request, error: Exception) -> JSONResponse:
    logger.error("Redis: %s", error)
    return JSONResponse({"detail": f"Redis: {error}", "request_id": request_id.get()}, 503)


# --- who may see a page ---------------------------------------------------------------------------

# Each route names what it needs, or is public: the route that was matched is what counts, however
# its path was written.


async def _gateway(connection: HTTPConnection) -> Gateway:
    return connection.app.state.gateway


Here = Annotated[Gateway, Depends(_gateway)]


def _refusal(status: int, sentence: str) -> HTTPException:
    return HTTPException(
        status, sentence, {"WWW-Authenticate": "Bearer"} if status == 401 else None
    )


def _key(*scopes: Scope) -> Any:
    """For callers with a key that has one of these scopes; for everybody where there are no
    keys."""

    async def check(request: Request, here: Here) -> None:
        try:
            await here.access.holder(request.headers, request.query_params, *scopes)
        except AccessDenied as error:
            raise _refusal(error.status, str(error)) from None

    return Depends(check)


def _operator(scope: Scope, keyless: bool = False) -> Any:
    """For the admin, and for keys with this scope. keyless: for everybody if there is neither."""

    async def check(request: Request, here: Here) -> None:
        if _is_admin(request, here):
            return
        if not here.access.open:
            try:
                await here.access.holder(request.headers, request.query_params, scope)
            except AccessDenied as error:
                raise _refusal(error.status, str(error)) from None
        elif here.settings.admin_key:
            raise _refusal(401, "the admin key is needed: Authorization: Bearer KEY")
        elif not keyless:
            raise _refusal(403, "no DALSTON_ADMIN_KEY is set")

    return Depends(check)


def _is_admin(request: Request, here: Gateway) -> bool:
    if here.settings.admin_key is None:
        return False
    expected = f"Bearer {here.settings.admin_key.get_secret_value()}"
    shown = request.headers.get("authorization", "")
    return hmac.compare_digest(shown.encode(), expected.encode())


# --- pages ----------------------------------------------------------------------------------------

pages = APIRouter()


@pages.get("/health/live")
async def live() -> JSONResponse:
    return JSONResponse(health.liveness())


@pages.get("/health")
async def basic_health(here: Here) -> JSONResponse:
    return JSONResponse(*await health.health(here.slots, here.calls))


@pages.get("/health/extended", dependencies=[_operator("read", keyless=True)])
async def extended_health(here: Here) -> JSONResponse:
    return JSONResponse(*await health.extended_health(here.slots, here.calls))


@pages.get("/metrics", dependencies=[_operator("read", keyless=True)])
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


@pages.get("/v1/realtime/status", dependencies=[_key("stream", "read")])
async def status(here: Here) -> JSONResponse:
    return JSONResponse(capacity(await here.slots.workers()))


@pages.get("/ws/status", dependencies=[_key("stream", "read")])
async def recordings_status(here: Here) -> JSONResponse:
    """The same for clients of /ws/transcribe."""
    return JSONResponse(health.recordings_status(await here.slots.workers(), here.calls))


@pages.get("/v1/realtime/sessions", dependencies=[_operator("read")])
async def sessions(here: Here) -> JSONResponse:
    return JSONResponse({"sessions": await here.slots.sessions()})


@pages.delete("/v1/realtime/sessions/{session_id}", dependencies=[_operator("admin")])
async def terminate(session_id: str, here: Here) -> JSONResponse:
    """202: its gateway ends it. 200: no gateway had it any more, and its slot is free now."""
    status = await end_session(here.slots, session_id)
    if status is None:
        raise HTTPException(404, f"no active session {session_id}")
    body = {"session_id": session_id, "status": status}
    return JSONResponse(body, 202 if status == "terminating" else 200)


class TokenWish(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for a token."""

    ttl_seconds: int = tokens.USUAL_S
    scopes: list[Scope] = msgspec.field(default_factory=lambda: list(DEFAULT_SCOPES))


@pages.post("/v1/auth/token", dependencies=[_key(*get_args(Scope))])
async def token(request: Request, here: Here) -> JSONResponse:
    """A token that a browser may open connections with."""
    if here.access.open:
        raise HTTPException(404, "no API keys are set: everybody is let in, without a token")
    try:
        wish = msgspec.json.decode(await _body(request) or b"{}", type=TokenWish)
        text, claims = await here.access.token(
            request.headers, request.query_params, wish.ttl_seconds, wish.scopes
        )
    except msgspec.MsgspecError as error:
        raise HTTPException(400, f"the body: {error}") from None
    except TokenRefused as error:
        raise HTTPException(error.status, str(error)) from None
    except AccessDenied as error:
        raise _refusal(error.status, str(error)) from None
    expires = datetime.fromtimestamp(claims.expires, UTC).isoformat(timespec="seconds")
    body = {"token": text, "expires_at": expires, "scopes": claims.scopes}
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


async def _body(request: Request) -> bytes:
    """Raises HTTPException if it is longer than any of ours."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise HTTPException(413, f"the body: {LONGEST_BODY} bytes at most")
    return body


def capacity(workers: list[WorkerRecord]) -> dict[str, Any]:
    """The body of /v1/realtime/status. Only workers that take sessions count as capacity."""
    serving = [worker for worker in workers if worker.status in ("ready", "busy")]
    total = sum(worker.capacity for worker in serving)
    available = sum(worker.available for worker in serving)
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
