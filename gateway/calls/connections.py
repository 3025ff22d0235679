"""
The calls of this gateway: what each caller asks for is checked, a slot taken, and its call
(call.py) looked after until the slot is given back.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from redis.exceptions import RedisError

from dalston.gateway import metrics
from dalston.gateway.access.access import Access, AccessDenied, KeyHolder, check_resume
from dalston.gateway.access.addresses import address_group
from dalston.gateway.access.keys import Scope
from dalston.gateway.calls.admission import Admission, admit, give_back
from dalston.gateway.calls.call import ANSWERED_S, Call, Unreachable
from dalston.gateway.calls.caller import Caller, CallRefused, Objection
from dalston.gateway.calls.channels import Channel, Channels, begin_together
from dalston.gateway.calls.intake import Intake, IntakeLimits
from dalston.gateway.calls.memory import HeldMemory
from dalston.gateway.calls.pace import Pace, PaceLimits
from dalston.gateway.calls.record import Away, forget
from dalston.gateway.calls.relay import HELD_S, Relay
from dalston.gateway.protocols.protocol import Asked, Overflow, Resume
from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.transport import Disconnected
from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots, TooMany
from dalston.orchestrator.process import request_ids, traces
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    PROTOCOL_VERSION,
    End,
    Error,
    Queued,
    SessionBegin,
    refusal,
    segment_number,
    serialize,
)
from dalston.orchestrator.protocol.mute import Mute
from dalston.orchestrator.protocol.parameters import ParameterError
from dalston.triton.contract import SMALLER

logger = logging.getLogger(__name__)
T = TypeVar("T")

_WHY_NOT = {
    "no_workers": "No realtime workers available. Try again later.",
    "draining": "All realtime workers are being restarted. Try again later.",
    "full": "All realtime workers are busy. Try again later.",
}
DENIED = {
    "unauthorized": CloseCode.UNAUTHORIZED,
    "forbidden": CloseCode.FORBIDDEN,
    "no_capacity": CloseCode.NO_CAPACITY,
}


class Calls:
    """The calls of this gateway, so that leases can be renewed, and a way to end them."""

    def __init__(self, slots: Slots, access: Access, settings: GatewaySettings):
        self.slots = slots
        self._access = access
        self._id = secrets.token_hex(8)
        self.draining = False
        self._settings = settings
        self._calls: dict[str, Call] = {}
        self._away = Away(slots, settings.resume_seconds)
        # Who say what they want, or wait for slots, some of them in line.
        self._asking: set[asyncio.Task[Any]] = set()
        self._count = 0
        self._intakes: set[Intake] = set()
        self._memory = HeldMemory(settings.held_bytes, settings.held_bytes_in_line)
        self._limits = IntakeLimits(
            settings.caller_bytes, settings.held_seconds_in_line, settings.no_audio_seconds
        )

    def __len__(self) -> int:
        return self._count

    @property
    def sessions(self) -> int:
        """How many calls have a slot."""
        return len(self._calls)

    @property
    def held_bytes(self) -> int:
        return sum(intake.held_bytes for intake in self._intakes)

    async def renew(self) -> None:
        """Renew the leases of all calls. To be called well within every lease."""
        self._away.forget()
        calls = [call for call in self._calls.values() if not call.ended]
        for session_id in await self.slots.renew([call.slot for call in calls]):
            if call := self._calls.get(session_id):
                about = {"session_id": session_id}
                logger.warning("%s: another gateway has taken it over", session_id, extra=about)
                call.send_away("taken_over", None)
        await self._keep_again()

    async def _keep_again(self) -> None:
        """Write again what is gone though Redis was not: a clock that is set forward ends what is
        kept for a time only."""
        resumable = {id: call for id, call in self._calls.items() if call.resumes}
        for session_id in await self.slots.not_kept(list(resumable)):
            resumable[session_id].save_everything()
        await self._away.write_missing()

    async def restore(self) -> None:
        """Write everything again: Redis is back, perhaps without what it knew."""
        for call in self._calls.values():
            call.save_everything()
        await self.renew()
        await self._away.write()

    async def look_after(self) -> None:
        """To be called twice a second or so: workers that went silent are noticed, callers who
        send no audio, and how much is held of all."""
        now = asyncio.get_running_loop().time()
        for call in list(self._calls.values()):
            call.look_after(now)
        for intake in self._intakes:
            intake.look_after(now)
        if self._memory.look(self._intakes, now):
            metrics.HELD_TOO_MUCH.inc()

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

    async def serve(self, caller: Caller, scope: Scope = "stream") -> None:
        """Serve one caller, from its first frame to the last. scope: what its key must have."""
        self._count += 1
        try:
            if caller.opens_at_once:
                await caller.open()
            await self._serve(caller, scope)
        except AccessDenied as denied:
            error = refusal(denied.code, str(denied))
            await _refuse(caller, error, DENIED[denied.code])
        except CallRefused as refused:
            await _refuse(caller, refusal(refused.code, str(refused)), refused.close_code)
        except Disconnected as gone:
            logger.debug("a caller left: %r", gone)
        finally:
            caller.ignore()
            self._count -= 1

    async def _serve(self, caller: Caller, scope: Scope) -> None:
        if caller.shows_key_later:
            asked = await self._asked(caller)
            holder = await self._holder(caller, scope, asked.key)
        else:
            holder = await self._holder(caller, scope)
            asked = await self._asked(caller)
        caller.unpack(asked.container)
        if self.draining:
            metrics.ALLOCATION_FAILURES.labels("draining").inc()
            raise _no_capacity(_WHY_NOT["draining"])
        relays = [await self._relay(asked, number, holder) for number in range(asked.channels)]
        if asked.channels == 1:
            return await self._serve_as([caller], relays, caller, asked, holder)
        channels = Channels(caller, begin_together(relays), relays[0].config.encoding)
        try:
            await self._serve_as(channels.all, relays, caller, asked, holder)
        finally:
            channels.leave()

    async def _holder(self, caller: Caller, scope: Scope, key: str = "") -> KeyHolder:
        """Whose key it is. Raises AccessDenied."""
        opening = caller.opening
        shown = dict(opening.query) | ({"api_key": key} if key else {})
        return await self._access.holder(opening.headers, shown, scope)

    async def _relay(self, asked: Asked, number: int, holder: KeyHolder) -> Relay:
        """A session, of the channel with this number."""
        if asked.resume:
            return await self._resumed(asked, asked.resume[number], holder)
        return Relay(f"sess_{secrets.token_hex(12)}", asked.config, asked.warnings)

    async def _serve_as(
        self,
        parties: Sequence[Caller | Channel],
        relays: Sequence[Relay],
        caller: Caller,
        asked: Asked,
        holder: KeyHolder,
    ) -> None:
        """Serve a caller as these parties, who have a session each."""
        over = [pair for pair in zip(parties, relays, strict=True) if pair[1].end]
        live = [pair for pair in zip(parties, relays, strict=True) if not pair[1].end]
        for party, _ in over:
            party.ignore()
        if not live:
            return await _together([self._tell_the_end(*pair) for pair in over])
        request_ids.session_id.set(live[0][1].session_id)
        admission = self._admission(caller, [relay for _, relay in live], asked, holder)
        intakes = list[Intake]()
        try:
            for party, relay in live:
                # Of a recording nothing is missing: what does not come yet is not read yet.
                mute_s = 0.0 if relay.config.recorded else self._settings.mute_seconds
                mute = Mute(mute_s, relay.config)
                pace = self._pace(relay)
                intakes.append(Intake(party, relay, pace, self._limits, self._memory, mute))
            self._intakes.update(intakes)
            for intake in intakes:
                intake.begin()
            slot = await self._admit(caller, intakes, admission)
            await self._check_again(holder, slot)
            slots = filter(None, (slot, slot.partner))
            calls = [
                self._call(party, relay, slot, admission, intake)
                for (party, relay), slot, intake in zip(live, slots, intakes, strict=True)
            ]
            await _together([*calls, *(self._tell_the_end(*pair) for pair in over)])
        finally:
            self._intakes.difference_update(intakes)
            for intake in intakes:
                intake.end()

    async def _call(
        self,
        party: Caller | Channel,
        relay: Relay,
        slot: Slot,
        admission: Admission,
        intake: Intake,
    ) -> None:
        request_ids.session_id.set(relay.session_id)
        if slot.variant == SMALLER != relay.config.model:
            relay.degrade(SMALLER)
        call = Call(party, relay, self.slots, slot, admission.record, intake, self._settings)
        intake.admitted()
        await self._run(call, relay, party)

    async def _run(self, call: Call, relay: Relay, caller: Caller | Channel) -> None:
        """Run a call that has a slot, until its slot is given back."""
        if before := self._calls.get(relay.session_id):
            before.send_away("taken_over", None)
        self._calls[relay.session_id] = call
        metrics.SESSIONS.inc()
        parent = caller.opening.headers.get(traces.HEADER, "")
        about = {
            "dalston.session_id": relay.session_id,
            "dalston.request_id": request_ids.request_id.get(),
        }
        try:
            with traces.span("call", about, parent=parent, kind="server"):
                await call.run()
        except Unreachable:
            metrics.ALLOCATION_FAILURES.labels("unreachable").inc()
            raise _no_capacity("No realtime worker answers. Try again later.") from None
        finally:
            if self._calls.get(relay.session_id) is call:
                del self._calls[relay.session_id]
            if call.keeps and not relay.end:
                self._away.leave(call.slot, relay)

    async def _asked(self, caller: Caller) -> Asked:
        """What the caller asks for, as soon as they have said it. Raises CallRefused and
        Disconnected."""
        patience_s = self._settings.handshake_seconds
        try:
            if (asked := caller.asked()) is not None:
                return asked
            if self.draining:
                raise _no_capacity(_WHY_NOT["draining"])
            asking = asyncio.create_task(caller.asked_later(patience_s))
            return await self._unless_left(caller, asking)
        except ParameterError as error:
            raise CallRefused(error.code, str(error), CloseCode.INVALID_PARAMETER) from None
        except TimeoutError:
            sentence = f"no settings came for {patience_s:g} s"
            raise CallRefused("session_timeout", sentence, CloseCode.TIMEOUT) from None

    def _admission(
        self, caller: Caller, relays: Sequence[Relay], asked: Asked, holder: KeyHolder
    ) -> Admission:
        config, strategy = relays[0].config, self._overflow(asked)
        if asked.resume and strategy == "degrade":
            strategy = "reject"  # a session goes on as it was
        return Admission(
            relays[0].session_id,
            config.model,
            {
                "language": config.language,
                "model": config.model,
                "client_ip": caller.address,
                "enhance_on_end": "false",
                "gateway": self._id,
            },
            key_id=holder.key_id,
            key_limit=holder.max_sessions,
            address=address_group(caller.address),
            address_limit=self._settings.sessions_per_address,
            strategy=strategy,
            timeout_s=self._settings.file_queue_seconds
            if config.recorded
            else self._settings.queue_seconds,
            partner=relays[1].session_id if len(relays) > 1 else "",
        )

    def _overflow(self, asked: Asked) -> Overflow:
        """What the caller gets when no slot is free. Raises CallRefused."""
        allowed = self._settings.overflow_allowed
        if asked.config.recorded:
            return "queue"  # nobody waits for each word of it
        if asked.overflow is None or asked.overflow in (self._settings.overflow, *allowed):
            return asked.overflow or self._settings.overflow
        sentence = (
            f"overflow={asked.overflow!r} is not allowed here; it may be {', '.join(allowed)}"
        )
        raise CallRefused("invalid_parameter", sentence, CloseCode.INVALID_PARAMETER)

    def _pace(self, relay: Relay) -> Pace:
        settings = self._settings
        audio = PaceLimits(
            settings.audio_rate, settings.audio_burst_seconds, settings.audio_held_seconds
        )
        if relay.config.recorded:  # read as fast as its session takes it
            audio = PaceLimits(math.inf, math.inf, math.inf)
        messages = PaceLimits(
            settings.message_rate, settings.message_burst, settings.message_held_seconds
        )
        pace = Pace(audio, messages, relay.config, asyncio.get_running_loop().time())
        if relay.resume_offset_ms is not None:
            pace.exempt(HELD_S)
        return pace

    async def _admit(self, caller: Caller, intakes: Sequence[Intake], admission: Admission) -> Slot:
        """A slot, perhaps after a wait in line, which ends when the caller vanishes or we have to
        go. What they say meanwhile is held."""
        asking = asyncio.create_task(self._ask(caller, admission))
        return await self._unless_left(caller, asking, [intake.refused for intake in intakes])

    async def _check_again(self, holder: KeyHolder, slot: Slot) -> None:
        """Give the slot back if the key was revoked while its caller waited. Raises
        AccessDenied."""
        try:
            await self._access.check_again(holder)
        except BaseException:
            with suppress(RedisError):
                await asyncio.shield(give_back(self.slots, slot))
            raise

    async def _unless_left(
        self,
        caller: Caller,
        asking: asyncio.Task[T],
        refused: Sequence[asyncio.Future[Objection]] = (),
    ) -> T:
        """The result of a task, unless the caller vanishes, or is objected to, or we have to go."""
        leaving = asyncio.create_task(caller.until_disconnected())
        self._asking.add(asking)
        try:
            over = [asking, leaving, *refused]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            if objections := [future.result() for future in refused if future.done()]:
                objection = objections[0]
                if objection.at_once:
                    raise CallRefused(objection.code, objection.sentence, objection.close_code)
                await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if asking.cancelled():
                raise _no_capacity(_WHY_NOT["draining"])
            if not asking.done():
                raise Disconnected
            return await asking
        finally:
            self._asking.discard(asking)
            for task in (asking, leaving):
                task.cancel()
            await asyncio.gather(asking, leaving, return_exceptions=True)

    async def _ask(self, caller: Caller, admission: Admission) -> Slot:
        allocation = metrics.Allocation()

        async def tell(position: Queued) -> None:
            allocation.waits()
            await caller.tell(position)

        try:
            with allocation:
                return await admit(self.slots, admission, tell)
        except TooMany as error:
            sentence = f"this {error.of} has as many sessions as it may; end one first"
            raise CallRefused("rate_limit", sentence, CloseCode.TOO_MANY_SESSIONS) from None
        except NoCapacity as error:
            raise _no_capacity(_WHY_NOT[error.reason]) from None
        except RedisError as error:
            logger.error("Redis: %s", error)
            sentence = "The register of workers cannot be reached. Try again later."
            raise _no_capacity(sentence) from None

    async def _resumed(self, asked: Asked, resume: Resume, holder: KeyHolder) -> Relay:
        """The session that the caller wants to go on with. Raises CallRefused and AccessDenied."""
        session_id = resume.session_id
        if not self._settings.resume:
            sentence = "nothing is kept of sessions here (DALSTON_RESUME); begin a new one"
            raise CallRefused("invalid_parameter", sentence, CloseCode.INVALID_PARAMETER)
        try:
            kept = await self.slots.kept(session_id)
            while _lacks(kept, resume.last_segment) and await self.slots.server.may_come_back():
                await asyncio.sleep(0.1)
                kept = await self.slots.kept(session_id)
        except RedisError as error:
            logger.error("Redis: %s", error)
            sentence = "The register of sessions cannot be reached. Try again later."
            raise _no_capacity(sentence) from None
        if kept is None:
            sentence = f"nothing is kept of session {session_id!r}; begin a new one"
            raise CallRefused("invalid_parameter", sentence, CloseCode.INVALID_PARAMETER)
        check_resume(holder, kept.get("key_id", ""))
        try:
            relay = Relay.resumed(session_id, kept, resume.last_segment, asked.warnings)
        except (KeyError, msgspec.MsgspecError) as error:
            logger.error("%s cannot be resumed: %r", session_id, error)
            sentence = f"what was kept of session {session_id!r} cannot be read; begin a new one"
            raise CallRefused("internal_error", sentence, CloseCode.INTERNAL) from None
        metrics.RESUMED.inc()
        self._away.is_back(session_id)
        return relay

    async def _tell_the_end(self, caller: Caller | Channel, relay: Relay) -> None:
        """Tell a client that resumes how its session ended."""
        begin = SessionBegin(
            session_id=relay.session_id,
            protocol_version=PROTOCOL_VERSION,
            config=relay.config,
            warnings=[],
            resumed_from=relay.session_id,
            resume_offset_ms=relay.resume_offset_ms,
        )
        for message in (serialize(begin), *relay.missed()):
            await caller.send(caller.say(message))
        await caller.close(CloseCode.NORMAL)
        if await caller.answered(ANSWERED_S):
            await forget(self.slots, relay.session_id)


async def _together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do these until all are done, or one fails: then the others end too. Raises what that
    raised."""
    if len(works) == 1:
        return await works[0]
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _lacks(kept: Mapping[str, str] | None, last_segment: int) -> bool:
    """Whether this is less than what a client knows that has the finals up to this one."""
    return kept is None or max(map(segment_number, kept), default=-1) < last_segment


def _no_capacity(sentence: str) -> CallRefused:
    return CallRefused("no_capacity", sentence, CloseCode.NO_CAPACITY)


async def _refuse(caller: Caller, error: Error, close_code: int) -> None:
    try:
        await caller.refuse(error, close_code)
    except Disconnected as gone:
        logger.debug("a caller left: %r", gone)
