"""
One caller: check what it asks for, take a slot, carry frames to the worker and back, give the
slot back.

Knows slots and sockets, not sessions: what the frames mean is between client and worker. A frame
is passed on before the next is read, so whoever is slow slows down the other side and nobody's
memory fills up.
"""

import asyncio
import contextlib
import logging
import secrets
from urllib.parse import urlencode

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import SecretStr
from redis.exceptions import RedisError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from dalston.gateway.access import Access, Refused, chosen_subprotocol
from dalston.orchestrator import request_ids
from dalston.orchestrator.messages import (
    End,
    Error,
    ErrorCode,
    ServerMessage,
    SessionTerminated,
    serialize,
)
from dalston.orchestrator.parameters import OTHER, ParameterError, session_config
from dalston.orchestrator.slots import NoCapacity, Slot, Slots

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5  # what a caller without a slot is told to wait
CONNECT_S = 3.0  # for a worker to answer; it is on the same network
# A worker that does not answer is not asked again; so many others are.
WORKERS_TRIED = 3
# A frame between gateway and worker: the client's largest, or a snapshot.
LONGEST_MESSAGE = 16 << 20  # bytes
_SNAPSHOT = '{"type":"session.snapshot"'
_GOING_AWAY, _INTERNAL, _NO_CAPACITY, _BAD_PARAMETER = 1001, 1011, 1013, 4400

_WHY_NOT = {
    "no_workers": "No realtime workers available. Try again later.",
    "draining": "All realtime workers are being restarted. Try again later.",
    "full": "All realtime workers are busy. Try again later.",
}


class Connections:
    """The sessions of this gateway: their slots, so that leases can be renewed, and a way to end
    them."""

    def __init__(self, slots: Slots, access: Access, worker_secret: SecretStr | None):
        self.slots = slots
        self.access = access
        self.worker_secret = worker_secret
        self.draining = False
        self._open: dict[str, tuple[Slot, ClientConnection]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    async def renew(self) -> None:
        """To be called well within every lease."""
        slots = [slot for slot, _ in self._open.values()]
        for session in await self.slots.renew(slots):
            logger.warning("%s: the slot is no longer ours", session)

    async def end(self, session_id: str, message: End) -> bool:
        """Ask the worker to finish a session; False if it is not one of ours."""
        if session_id not in self._open:
            return False
        with contextlib.suppress(ConnectionClosed):
            await self._open[session_id][1].send(serialize(message))
        return True

    async def end_all(self, message: End) -> None:
        for session_id in list(self._open):
            await self.end(session_id, message)

    async def serve(self, websocket: WebSocket) -> None:
        """One caller, from its first frame to the last."""
        await websocket.accept(chosen_subprotocol(websocket.scope["subprotocols"]))
        self._count += 1
        try:
            await self._serve(websocket)
        except (WebSocketDisconnect, ConnectionClosed, RuntimeError) as gone:
            # Starlette raises RuntimeError when we write to a socket that closed meanwhile.
            logger.debug("a caller left: %r", gone)
        finally:
            self._count -= 1

    async def _serve(self, websocket: WebSocket) -> None:
        query = dict(websocket.query_params)
        try:
            await self.access.caller(websocket.headers, query)
        except Refused as error:
            return await _refuse(websocket, error.code, str(error), error.close_code)
        try:
            config, _ = session_config(query)
        except ParameterError as error:
            return await _refuse(websocket, error.code, str(error), _BAD_PARAMETER)
        if self.draining:
            return await _refuse(websocket, "no_capacity", _WHY_NOT["draining"], _NO_CAPACITY)

        session_id = f"sess_{secrets.token_hex(12)}"
        request_ids.session_id.set(session_id)
        record = {
            "language": config.language,
            "model": config.model,
            "client_ip": websocket.client.host if websocket.client else "",
            "enhance_on_end": "false",
        }
        avoid = ""
        for _ in range(WORKERS_TRIED):
            try:
                slot = await self.slots.acquire(session_id, config.model, record, avoid=avoid)
            except NoCapacity as error:
                sentence = _WHY_NOT[error.reason]
                return await _refuse(websocket, "no_capacity", sentence, _NO_CAPACITY)
            except RedisError as error:
                logger.error("Redis: %s", error)
                sentence = "The register of workers cannot be reached. Try again later."
                return await _refuse(websocket, "no_capacity", sentence, _NO_CAPACITY)
            status = "error"
            try:
                worker = await _reach(slot, query, self.worker_secret)
                async with worker:
                    self._open[session_id] = (slot, worker)
                    await _carry(websocket, worker, session_id)
                    status = "ended"
                    return
            except (OSError, TimeoutError, InvalidHandshake, InvalidMessage) as error:
                logger.warning("worker %s at %s: %s", slot.worker_id, slot.endpoint, error)
                avoid = slot.worker_id
            finally:
                self._open.pop(session_id, None)
                await self._release(slot, status)
        sentence = "No realtime worker answers. Try again later."
        await _refuse(websocket, "no_capacity", sentence, _NO_CAPACITY)

    async def _release(self, slot: Slot, status: str) -> None:
        try:
            ended = "ended" if status == "ended" else "error"
            # Shielded: a caller that vanishes cancels us, and the slot must come back all the same.
            await asyncio.shield(self.slots.release(slot.session_id, slot.epoch, ended))
        except RedisError as error:
            logger.error("%s: the slot comes back with its lease: %s", slot.session_id, error)


async def _reach(slot: Slot, query: dict[str, str], secret: SecretStr | None) -> ClientConnection:
    """A connection to the worker of the slot."""
    # Keys are not for workers, and what only a gateway may say is not for clients.
    parameters = {name: value for name, value in query.items() if name not in OTHER}
    parameters |= {"session_id": slot.session_id, "epoch": str(slot.epoch)}
    parameters["request_id"] = request_ids.request_id.get()
    return await connect(
        f"{slot.endpoint}/session?{urlencode(parameters)}",
        additional_headers=(
            {"Authorization": f"Bearer {secret.get_secret_value()}"} if secret else None
        ),
        open_timeout=CONNECT_S,
        close_timeout=1.0,  # the slot comes back behind it
        compression=None,
        max_size=LONGEST_MESSAGE,
    )


async def _carry(websocket: WebSocket, worker: ClientConnection, session_id: str) -> None:
    """Frames both ways until one side closes; then close the other as it did."""

    async def upstream() -> None:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            frame = message.get("bytes")
            await worker.send(frame if frame is not None else message["text"])

    async def downstream() -> None:
        async for frame in worker:
            if isinstance(frame, str) and not frame.startswith(_SNAPSHOT):
                await websocket.send_text(frame)

    up, down = asyncio.create_task(upstream()), asyncio.create_task(downstream())
    try:
        await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        if up.done() and not down.done() and up.exception():
            # The worker closed while we were writing: what it said before still comes.
            await asyncio.wait([down])
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
    failure = None if down.cancelled() else down.exception()
    if failure and not isinstance(failure, ConnectionClosed):
        raise failure
    # A worker that closes on purpose says so, with whatever code; one that died does not.
    if isinstance(failure, ConnectionClosed) and failure.rcvd is None:
        logger.error("%s: the worker is lost: %s", session_id, failure)
        await _send(
            websocket,
            SessionTerminated(
                session_id=session_id,
                reason="worker_lost",
                recoverable=True,
                recovery_hint="connect again",
            ),
        )
        await websocket.close(_INTERNAL)
    elif worker.close_code is not None:
        await websocket.close(worker.close_code, worker.close_reason or None)


async def _send(websocket: WebSocket, message: ServerMessage) -> None:
    await websocket.send_text(serialize(request_ids.named(message)))


async def _refuse(websocket: WebSocket, code: ErrorCode, sentence: str, close_code: int) -> None:
    no_capacity = code == "no_capacity"
    error = Error(
        code=code,
        message=sentence,
        recoverable=no_capacity,
        retry_after=RETRY_AFTER_S if no_capacity else None,
    )
    await _send(websocket, error)
    await websocket.close(close_code)
