"""
One call: a client, the worker that has its session, and the next worker if that one is lost.

        attach              worker lost, or it drains
   ----------> ATTACHED ---------------------------> attach again, within OUTAGE_SECONDS
                  | the worker ends the session              | no worker in time
                  v                                          v
               closed as the worker did               session.terminated

A call knows slots and connections. relay.py keeps track of what has to be said again, and of what
the client already knows. A frame is passed on before the next is read, so a side that is slow slows
down the other one, and memory does not fill up.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from contextvars import copy_context
from typing import Literal

from redis.exceptions import RedisError

from dalston.gateway import metrics
from dalston.gateway.calls.caller import Caller
from dalston.gateway.calls.intake import Intake
from dalston.gateway.calls.record import Record
from dalston.gateway.calls.relay import Relay
from dalston.gateway.calls.worker_link import (
    BEGIN_S,
    CONNECT_S,
    SessionRefused,
    WorkerAway,
    begin,
    lost,
)
from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.transport import Disconnected
from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots
from dalston.orchestrator.process.request_ids import named
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    End,
    Error,
    ServerMessage,
    SessionTerminated,
    Warn,
    serialize,
)
from dalston.orchestrator.protocol.websocket_peer import Peer, PeerClosed

logger = logging.getLogger(__name__)

# How long we look for the first worker before the client is sent away: the one asked first may be
# mute.
FIRST_WORKER_S = 2 * (CONNECT_S + BEGIN_S)
RETRY_FIRST_S, RETRY_LAST_S = 0.1, 1.0
LAST_WORDS_S = 2.0  # for a client to take them
ANSWERED_S = 2.0  # for a client to answer our close, which shows that it has read the end
# After so many workers lost without a snapshot in between we assume that the audio itself crashes
# them, and stop.
MOST_LOSSES = 8


class Unreachable(Exception):
    """No worker answered in time."""


class TakenOver(Exception):
    """Another gateway has the session now."""


class Call:
    def __init__(
        self,
        caller: Caller,
        relay: Relay,
        slots: Slots,
        slot: Slot,
        record: Mapping[str, str | int],
        intake: Intake,
        settings: GatewaySettings,
    ):
        self.slot = slot
        self._caller = caller
        self._context = copy_context()  # whose session it is: for log lines
        self._relay = relay
        self._slots = slots
        self._record = record
        self._outage_s, self._silent_s = settings.outage_seconds, settings.worker_silent_seconds
        self._secret = settings.worker_secret
        self._link: Peer | None = None  # that is being listened to
        self._begun = asyncio.Event()  # and the client was told
        self._telling = False  # the client has not taken the last message yet
        # Nobody else has a recording, so that nobody could go on with it elsewhere.
        self._keeps = settings.resume and not relay.config.recorded
        self._kept = Record(relay, slots, self._keeps)
        self._released = self._end_told = False
        self._intake = intake
        self._reader_s = settings.reader_seconds
        # What the client is told last, and the code to close with, when it is us who end the call.
        self._leave: asyncio.Future[tuple[ServerMessage, CloseCode]] = (
            asyncio.get_running_loop().create_future()
        )
        self._close_code: CloseCode | None = None  # instead of the worker's
        self._status: Literal["ended", "error"] = (
            "ended"  # what the register is told; "ended" also if the client leaves
        )

    async def run(self) -> None:
        """Carry frames both ways until either side has ended."""
        tasks = [
            asyncio.create_task(work)
            for work in (
                self._caller.until_disconnected(),
                self._serve(),
                self._report_objection(),
                self._kept.keep(self._write),
            )
        ]
        leaving, serving, objecting, saving = tasks
        asking = [leaving, serving, objecting]
        try:
            over = [leaving, serving, self._leave]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            if self._leave.done():
                await self._stop(asking)
                message, code = self._leave.result()
                await self._write()  # before the client asks for it elsewhere
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORDS_S):
                        await self._caller.tell(message)
                        await self._caller.close(code)
            elif serving.done():
                await serving  # raises what it raised
        except Disconnected:
            raise
        except Exception:
            self._status = "error"
            raise
        finally:
            self._intake.end()
            await self._stop(asking)
            # Shielded: a server that stops cancels us, and the slot must come back all the same.
            await asyncio.shield(self._go(saving))

    async def _report_objection(self) -> None:
        """Object to what the caller sends, once the session has begun: no error comes before."""
        objection = await self._intake.refused
        await self._begun.wait()
        message = Error(code=objection.code, message=objection.sentence, recoverable=False)
        if objection.at_once:
            return self._end_with(message, objection.close_code)
        self._close_code = objection.close_code
        await self._tell(serialize(named(message)))
        self.end(End(objection.reason))

    async def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _go(self, saving: asyncio.Task[None]) -> None:
        delivered = self._end_told and await self._caller.answered(ANSWERED_S)
        if delivered:
            self._relay.unsaved()  # which needs no saving any more
        # Not cancelled: redis-py swallows that at times, and what is half said is to be saved.
        self._kept.end()
        await saving
        if delivered:
            await self._kept.forget(self._relay.session_id)
        await self._release()

    async def _release(self) -> None:
        if self._released:
            return
        relay = self._relay
        try:
            await self._slots.release(
                self.slot.session_id,
                self.slot.epoch,
                self._status,
                relay.audio_s,
                model=relay.config.model,
                language=relay.language,
            )
            self._released = True
        except RedisError as error:
            logger.error("%s: the slot comes back with its lease: %s", self.slot.session_id, error)

    async def _write(self) -> bool:
        """Save what is new. Returns whether the register now has everything."""
        written = await self._kept.write(self.slot)
        if written == "taken over":
            self.send_away("taken_over", None)
        return written != "not yet"

    # What others ask.

    def end(self, message: End) -> None:
        """Ask for the end of the session, whatever worker has it."""
        self._intake.insert(serialize(message))

    def send_away(self, reason: str, hint: str | None) -> None:
        """Leave the session to another gateway. Without a hint the client is to forget it."""
        session = self._relay.session_id
        message = SessionTerminated(
            session_id=session, reason=reason, recoverable=hint is not None, recovery_hint=hint
        )
        self._end_with(message, CloseCode.GOING_AWAY)

    def _end_with(self, message: ServerMessage, code: CloseCode) -> None:
        if not self._leave.done() and not self._relay.end:  # nothing is told after it
            self._leave.set_result((message, code))

    @property
    def resumes(self) -> bool:
        """Whether its client can go on at another gateway."""
        return self._keeps and self._caller.resumes and self._relay.config.ack

    def save_everything(self) -> None:
        self._kept.everything()

    def look_after(self, now: float) -> None:
        """To be called every fifth of worker_silent_seconds: a worker that is quiet for a third of
        them is asked whether it lives, and has another third to say so."""
        self._intake.look_for_mute(now)
        link, patience_s = self._link, 0.3 * self._silent_s
        if link is None:
            return
        if link.pinged_at is None:
            if now - link.heard_at > patience_s:
                link.ping(now)
        # While a slow client keeps us from listening the answer cannot come.
        elif now - link.pinged_at > patience_s and not self._telling:
            self._context.run(
                logger.error, "%s: %s is silent", self._relay.session_id, self.slot.worker_id
            )
            link.abort()

    # The client's side.

    async def _tell(self, message: str) -> None:
        if not (waiting := self._caller.say(message)):
            return
        self._telling = True
        try:
            async with asyncio.timeout(self._reader_s):
                await self._caller.send(waiting)
        except TimeoutError:
            # It may still take these words; if not, TCP_USER_TIMEOUT (server.py) ends the
            # connection.
            sentence = "what is sent is not read"
            error = Error(code="slow_reader", message=sentence, recoverable=False)
            self._end_with(error, CloseCode.SLOW_READER)
            raise Disconnected(sentence) from None
        finally:
            self._telling = False

    # The worker's side.

    async def _serve(self) -> None:
        """Attach, listen, and attach again as often as a worker is lost; then close."""
        await self._caller.open()
        relay, slot = self._relay, self.slot
        within = FIRST_WORKER_S
        avoid = ""
        losses, since = 0, relay.snapshot
        takeover: metrics.Takeover | None = None
        while True:
            try:
                link = await self._attach(slot, avoid, within)
                if takeover:
                    takeover.taken()
            except SessionRefused as refused:
                self._status = "error"
                await self._tell(refused.frame)
                return await self._caller.close(refused.code)
            except TakenOver:
                return self.send_away("taken_over", None)
            except Unreachable:
                if takeover is None:
                    raise
                takeover.failed()
                return await self._give_up()
            code, last = await self._listen(link)
            if relay.end or not lost(code, last):
                self._status = "error" if code == CloseCode.INTERNAL else "ended"
                if relay.end and code in (CloseCode.ABNORMAL, CloseCode.SERVICE_RESTART):
                    code = CloseCode.NORMAL
                return await self._caller.close(self._close_code or code, link.close_reason)
            losses = losses + 1 if relay.snapshot is since else 1
            since = relay.snapshot
            takeover = metrics.Takeover("drain" if code == CloseCode.SERVICE_RESTART else "lost")
            if losses > MOST_LOSSES:
                takeover.failed()
                return await self._give_up()
            within, slot, avoid = self._outage_s, None, self.slot.worker_id
            if code == CloseCode.SERVICE_RESTART:
                logger.info("%s: %s drains", relay.session_id, avoid)
            else:
                logger.error("%s: %s is lost (%s)", relay.session_id, avoid, code)
                sentence = "the worker was lost; the session goes on with another"
                await self._tell(serialize(Warn(code="worker_lost", message=sentence)))

    async def _give_up(self) -> None:
        message = SessionTerminated(
            session_id=self._relay.session_id,
            reason="worker_lost",
            recoverable=self._keeps,
            recovery_hint="connect again with resume_session_id" if self._keeps else None,
        )
        self._status = "error"
        await self._write()
        await self._tell(serialize(message))
        await self._caller.close(CloseCode.INTERNAL)

    async def _attach(self, slot: Slot | None, avoid: str, within: float) -> Peer:
        """Find a worker, take its slot, and begin the session there. Raises Unreachable and
        SessionRefused."""
        loop = asyncio.get_running_loop()
        deadline, wait = loop.time() + within, RETRY_FIRST_S
        away = set[str]()
        while True:
            if slot:
                self.slot = slot
                try:
                    return await self._reach(slot)
                except WorkerAway as error:
                    logger.warning("worker %s at %s: %s", slot.worker_id, slot.endpoint, error)
                    avoid = slot.worker_id
                if avoid in away:  # all were asked
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, RETRY_LAST_S)
                away.add(avoid)
            if loop.time() + wait > deadline:
                raise Unreachable
            try:
                slot = await self._acquire(avoid)
            except (NoCapacity, RedisError) as error:
                if isinstance(error, NoCapacity) and error.reason == "taken_over":
                    raise TakenOver from None
                # Perhaps the lost one is back before another has room.
                logger.debug("%s: %r", self._relay.session_id, error)
                avoid, slot = "", None
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_LAST_S)

    async def _acquire(self, avoid: str) -> Slot:
        """The session's next slot. Cancelled half-way it is ours all the same, to be given back."""
        acquiring = asyncio.ensure_future(
            self._slots.acquire(
                self._relay.session_id,
                self._relay.config.model,
                {**self._record, "language": self._relay.language},
                avoid=avoid,
                key_id=self.slot.key_id,
                address=self.slot.address,
                epoch=self.slot.epoch,
            )
        )
        try:
            return await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            with contextlib.suppress(NoCapacity, RedisError):
                self.slot = await acquiring
            raise

    async def _reach(self, slot: Slot) -> Peer:
        """Connect to the slot's worker, begin the session there, and tell the client."""
        relay = self._relay
        link, frame = await begin(slot, relay.stated(), self._secret)
        try:
            missed = relay.missed()
            told = relay.pass_on(frame)
            # Whoever is told that it has begun can go on with it elsewhere.
            if not told or not await self._write():
                self._kept.more()
            for known in (told, *missed):
                if known:
                    await self._tell(known)
            self._begun.set()
        except BaseException:
            link.abort()
            raise
        return link

    async def _listen(self, link: Peer) -> tuple[int, str]:
        """Pass on what a worker says until it closes: the code, and its last words."""
        loop, relay = asyncio.get_running_loop(), self._relay
        self._link, link.heard_at = link, loop.time()
        saying = asyncio.create_task(self._say_again(link, self._relay.start_again()))
        last = ""
        try:
            while True:
                frame = await link.received()
                link.heard_at = loop.time()
                if not isinstance(frame, str):
                    continue
                last = frame
                told = relay.pass_on(frame)
                if relay.end:
                    await self._release()  # who sees the end may want the next slot at once
                if told is not None:
                    await self._tell(told)
                self._end_told = relay.end is not None
                if relay.has_unsaved:
                    self._kept.more()
                    self._intake.go_on()
        except PeerClosed:
            pass
        finally:
            self._intake.pass_to(None)
            self._link = None
            link.abort()
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)
        return link.close_code, last

    async def _say_again(self, link: Peer, number: int) -> None:
        """Tell a worker everything that is held, then let the client's frames go straight to it."""
        with contextlib.suppress(PeerClosed):
            for ping in self._relay.unanswered_pings():
                await link.send(ping)
            while (frame := self._relay.frame(number)) is not None:
                number = max(number, self._relay.first_held) + 1
                await link.send(frame)
            self._intake.pass_to(link)
