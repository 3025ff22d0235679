"""
The callers of this gateway: what each asks for is checked, a slot taken, and its call (call.py)
looked after until the slot is given back.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping
from typing import get_args

import msgspec
from fastapi import WebSocket, WebSocketDisconnect
from redis.exceptions import RedisError

from dalston.gateway import metrics
from dalston.gateway.access.access import Access, Caller, Refused, check_resume, chosen_subprotocol
from dalston.gateway.calls.admission import Admission, admit
from dalston.gateway.calls.call import Call, Unreachable, left
from dalston.gateway.calls.intake import Intake
from dalston.gateway.calls.pace import Pace, PaceLimits
from dalston.gateway.calls.record import Away
from dalston.gateway.calls.relay import HELD_S, Relay, segment_number
from dalston.gateway.settings import GatewaySettings, Overflow
from dalston.gateway.transport.read_rounds import Rounds
from dalston.gateway.transport.uvicorn_protocol import Direct
from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots, TooMany
from dalston.orchestrator.process import request_ids, traces
from dalston.orchestrator.protocol.messages import (
    PROTOCOL_VERSION,
    End,
    Error,
    ErrorCode,
    Queued,
    ServerMessage,
    SessionBegin,
    serialize,
)
from dalston.orchestrator.protocol.parameters import OTHER, ParameterError, session_config

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5  # what a caller without a slot is told to wait
_NO_CAPACITY, _BAD_PARAMETER, _TOO_MANY = 1013, 4400, 4429

_SESSION = re.compile(r"sess_[0-9a-f]{24}")

_WHY_NOT = {
    "no_workers": "No realtime workers available. Try again later.",
    "draining": "All realtime workers are being restarted. Try again later.",
    "full": "All realtime workers are busy. Try again later.",
}


class Refusal(Exception):
    """A caller is sent away: the error's code, a sentence, the close code."""

    def __init__(self, code: ErrorCode, sentence: str, close_code: int):
        super().__init__(sentence)
        self.code: ErrorCode = code
        self.close_code = close_code


class Connections:
    """The calls of this gateway, so that leases can be renewed, and a way to end them."""

    def __init__(self, slots: Slots, access: Access, settings: GatewaySettings):
        self.slots = slots
        self._access = access
        self._id = secrets.token_hex(8)
        self.draining = False
        self._settings = settings
        self._calls: dict[str, Call] = {}
        self._away = Away(slots)
        self._asking: set[asyncio.Task[Slot]] = set()  # for slots, some of them in line
        self._count = 0
        self._rounds = Rounds()

    def __len__(self) -> int:
        return self._count

    @property
    def sessions(self) -> int:
        """Of these, those that have a slot."""
        return len(self._calls)

    @property
    def held_bytes(self) -> int:
        return sum(call.held_bytes for call in self._calls.values())

    async def renew(self) -> None:
        """To be called well within every lease."""
        calls = list(self._calls.values())
        for session_id in await self.slots.renew([call.slot for call in calls]):
            if call := self._calls.get(session_id):
                about = {"session_id": session_id}
                logger.warning("%s: another gateway has taken it over", session_id, extra=about)
                call.send_away("taken_over", None)

    async def restore(self) -> None:
        """Redis is back, perhaps without what it knew."""
        for call in self._calls.values():
            call.save_everything()
        await self.renew()
        await self._away.write()

    async def look_after(self) -> None:
        """To be called twice a second or so: workers that went silent are noticed."""
        now = asyncio.get_running_loop().time()
        for call in list(self._calls.values()):
            call.look_after(now)

    async def end(self, session_id: str, message: End) -> bool:
        """Ask the worker to finish a session; False if it is not one of ours."""
        call = self._calls.get(session_id)
        if call is None:
            return False
        call.end(message)
        return True

    async def end_all(self) -> None:
        """The gateway has to go: clients that can go on elsewhere are told to, and nobody waits in
        line here any more."""
        for asking in self._asking:
            asking.cancel()
        for session_id, call in list(self._calls.items()):
            if call.resumes:
                call.send_away("server_drain", "connect again with resume_session_id")
            else:
                await self.end(session_id, End("server_drain"))

    async def serve(self, websocket: WebSocket) -> None:
        """One caller, from its first frame to the last."""
        await websocket.accept(chosen_subprotocol(websocket.scope["subprotocols"]))
        self._count += 1
        try:
            await self._serve(websocket, Direct.of(websocket.scope))
        except (Refusal, Refused) as refusal:
            await _refuse(websocket, refusal)
        except (WebSocketDisconnect, RuntimeError) as gone:
            # Starlette raises RuntimeError when we write to a socket that closed meanwhile.
            logger.debug("a caller left: %r", gone)
        finally:
            self._count -= 1

    async def _serve(self, websocket: WebSocket, direct: Direct) -> None:
        query = dict(websocket.query_params)
        caller = await self._access.caller(websocket.headers, query)
        try:
            config, _ = session_config(query)
        except ParameterError as error:
            raise Refusal(error.code, str(error), _BAD_PARAMETER) from None
        if self.draining:
            metrics.ALLOCATION_FAILURES.labels("draining").inc()
            raise Refusal("no_capacity", _WHY_NOT["draining"], _NO_CAPACITY)

        if "resume_session_id" in query:
            relay = await self._resumed(query, caller)
            if relay.end:
                return await _tell_the_end(websocket, relay)
        else:
            relay = Relay(f"sess_{secrets.token_hex(12)}", config)
        request_ids.session_id.set(relay.session_id)
        admission = Admission(
            relay.session_id,
            relay.config.model,
            {
                "language": relay.config.language,
                "model": relay.config.model,
                "client_ip": websocket.client.host if websocket.client else "",
                "enhance_on_end": "false",
                "gateway": self._id,
            },
            key_id=caller.key_id,
            key_limit=caller.max_sessions,
            address=websocket.client.host if websocket.client else "",
            address_limit=self._settings.sessions_per_address,
            strategy=self._overflow(query),
            timeout_s=self._settings.queue_seconds,
        )
        intake = Intake(
            direct,
            relay,
            self._pace(relay),
            self._rounds,
            self._settings.frame_bytes,
        )
        intake.begin()
        try:
            slot = await self._admit(websocket, intake, admission)
        except BaseException:
            intake.end()
            raise
        call = Call(
            websocket,
            relay,
            self.slots,
            slot,
            # Keys are not for workers, and what only a gateway may say is not for clients.
            {name: value for name, value in query.items() if name not in OTHER},
            admission.record,
            intake,
            self._settings,
        )
        if before := self._calls.get(relay.session_id):
            before.send_away("taken_over", None)
        self._calls[relay.session_id] = call
        metrics.SESSIONS.inc()
        parent = websocket.headers.get(traces.HEADER, "")
        about = {
            "dalston.session_id": relay.session_id,
            "dalston.request_id": request_ids.request_id.get(),
        }
        try:
            with traces.span("call", about, parent=parent, kind="server"):
                await call.run()
        except Unreachable:
            metrics.ALLOCATION_FAILURES.labels("unreachable").inc()
            sentence = "No realtime worker answers. Try again later."
            raise Refusal("no_capacity", sentence, _NO_CAPACITY) from None
        finally:
            if self._calls.get(relay.session_id) is call:
                del self._calls[relay.session_id]
            if not relay.end:
                self._away.leave(call.slot, relay)

    def _overflow(self, query: Mapping[str, str]) -> Overflow:
        asked = query.get("overflow", self._settings.overflow)
        try:
            return msgspec.convert(asked, Overflow)
        except msgspec.ValidationError:
            allowed = ", ".join(get_args(Overflow))
            sentence = f"overflow={asked!r} is not allowed; it may be {allowed}"
            raise Refusal("invalid_parameter", sentence, _BAD_PARAMETER) from None

    def _pace(self, relay: Relay) -> Pace:
        settings = self._settings
        audio = PaceLimits(
            settings.audio_rate, settings.audio_burst_seconds, settings.audio_held_seconds
        )
        messages = PaceLimits(
            settings.message_rate, settings.message_burst, settings.audio_held_seconds
        )
        pace = Pace(audio, messages, relay.config, asyncio.get_running_loop().time())
        if relay.resume_offset_ms is not None:
            pace.exempt(HELD_S)
        return pace

    async def _admit(self, websocket: WebSocket, intake: Intake, admission: Admission) -> Slot:
        """A slot, perhaps after a wait in line, which ends when the caller vanishes or we have to
        go. What he says meanwhile is held."""
        asking = asyncio.create_task(self._ask(websocket, admission))
        leaving = asyncio.create_task(left(websocket))
        self._asking.add(asking)
        try:
            await asyncio.wait(
                [asking, leaving, intake.refused], return_when=asyncio.FIRST_COMPLETED
            )
            if intake.refused.done():
                objection = intake.refused.result()
                if objection.at_once:
                    raise Refusal(*objection)
                await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if asking.cancelled():
                raise Refusal("no_capacity", _WHY_NOT["draining"], _NO_CAPACITY)
            if not asking.done():
                raise WebSocketDisconnect
            return await asking
        finally:
            self._asking.discard(asking)
            for task in (asking, leaving):
                task.cancel()
            await asyncio.gather(asking, leaving, return_exceptions=True)

    async def _ask(self, websocket: WebSocket, admission: Admission) -> Slot:
        allocation = metrics.Allocation()

        async def tell(position: Queued) -> None:
            allocation.waits()
            await websocket.send_text(serialize(position))

        try:
            with allocation:
                return await admit(self.slots, admission, tell)
        except TooMany as error:
            sentence = f"this {error.of} has as many sessions as it may; end one first"
            raise Refusal("rate_limit", sentence, _TOO_MANY) from None
        except NoCapacity as error:
            raise Refusal("no_capacity", _WHY_NOT[error.reason], _NO_CAPACITY) from None
        except RedisError as error:
            logger.error("Redis: %s", error)
            sentence = "The register of workers cannot be reached. Try again later."
            raise Refusal("no_capacity", sentence, _NO_CAPACITY) from None

    async def _resumed(self, query: Mapping[str, str], caller: Caller) -> Relay:
        """The session the caller wants to go on with."""
        session_id, last = query["resume_session_id"], query.get("last_segment_id", "")
        if not _SESSION.fullmatch(session_id):  # it becomes part of a key
            sentence = f"resume_session_id={session_id!r} is no session"
            raise Refusal("invalid_parameter", sentence, _BAD_PARAMETER)
        number = -1
        if last:
            number = segment_number(last)
            if number < 0:
                sentence = f"last_segment_id={last!r} is no segment, such as seg_0007"
                raise Refusal("invalid_parameter", sentence, _BAD_PARAMETER)
        try:
            kept = await self.slots.kept(session_id)
            while kept is None and await self.slots.may_come_back():
                await asyncio.sleep(0.1)
                kept = await self.slots.kept(session_id)
        except RedisError as error:
            logger.error("Redis: %s", error)
            sentence = "The register of sessions cannot be reached. Try again later."
            raise Refusal("no_capacity", sentence, _NO_CAPACITY) from None
        if kept is None:
            sentence = f"nothing is kept of session {session_id!r}; begin a new one"
            raise Refusal("invalid_parameter", sentence, _BAD_PARAMETER)
        check_resume(caller, kept.get("key_id", ""))
        try:
            relay = Relay.resumed(session_id, kept, number)
        except (KeyError, msgspec.MsgspecError) as error:
            logger.error("%s cannot be resumed: %r", session_id, error)
            sentence = f"what was kept of session {session_id!r} cannot be read; begin a new one"
            raise Refusal("internal_error", sentence, 1011) from None
        metrics.RESUMED.inc()
        return relay


async def _tell_the_end(websocket: WebSocket, relay: Relay) -> None:
    """The session had ended, and its client may not know how."""
    begin = SessionBegin(
        session_id=relay.session_id,
        protocol_version=PROTOCOL_VERSION,
        config=relay.config,
        warnings=[],
        resumed_from=relay.session_id,
        resume_offset_ms=relay.resume_offset_ms,
    )
    for frame in (serialize(begin), *relay.missed()):
        await websocket.send_text(frame)
    await websocket.close(1000)


async def _send(websocket: WebSocket, message: ServerMessage) -> None:
    await websocket.send_text(serialize(request_ids.named(message)))


async def _refuse(websocket: WebSocket, refusal: Refusal | Refused) -> None:
    no_capacity = refusal.code == "no_capacity"
    error = Error(
        code=refusal.code,
        message=str(refusal),
        recoverable=no_capacity,
        retry_after=RETRY_AFTER_S if no_capacity else None,
    )
    try:
        await _send(websocket, error)
        await websocket.close(refusal.close_code)
    except (WebSocketDisconnect, RuntimeError) as gone:
        logger.debug("a caller left: %r", gone)
