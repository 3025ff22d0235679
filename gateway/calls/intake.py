"""
What a caller sends: it is held in case its worker is lost, passed on to the worker there is, and
read no faster than it may be sent.

What comes while the caller has to slow down, while as much is held as may be, and while the worker
does not take what it is sent, waits here; usually none does, for nothing is read meanwhile. But a
client that sends minutes at once has them in the buffers of two kernels, and after them its pings:
libraries end a connection that does not answer within some 20 s. A ping of ours stands in the
same line, so while its answer is late more is read than may be passed on, as much as one caller may
have here.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass

from dalston.gateway.calls.caller import Caller, Objection
from dalston.gateway.calls.channels import Channel
from dalston.gateway.calls.memory import FRAME_COSTS, HeldMemory
from dalston.gateway.calls.pace import Pace, TooFast
from dalston.gateway.calls.relay import Relay
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Flush, Frame, serialize
from dalston.orchestrator.protocol.mute import Mute
from dalston.orchestrator.protocol.websocket_peer import Peer

# A client that pushes is not read for at most so long, so that we notice when it leaves.
SLOWED_S = 1.0
# How late the answer to a ping of ours may be before more is read, how much then each second, and
# how late it may be at all where no more can be read: all within the patience of clients.
LATE_S, AHEAD, TOO_LATE_S = 4.0, 1 << 19, 15.0


@dataclass(frozen=True)
class IntakeLimits:
    most: int  # bytes of one caller here, beyond which nothing is read ahead
    in_line_s: float  # seconds of audio that are held of a caller without a slot
    no_audio_s: float  # how long there may be none; 0: for ever


class Intake:
    """What one caller sends, on its way to the relay and to the worker there is."""

    def __init__(
        self,
        caller: Caller | Channel,
        relay: Relay,
        pace: Pace,
        limits: IntakeLimits,
        memory: HeldMemory,
        mute: Mute,
    ):
        self._caller, self._relay, self._pace = caller, relay, pace
        self._limits, self._memory, self._mute = limits, memory, mute
        self._loop = asyncio.get_running_loop()
        self._worker: Peer | None = None
        self.in_line = True
        self._stopped = False  # passing on, and reading
        self._waiting = deque[Frame | Objection]()  # was read, and is not passed on yet
        self._waiting_bytes = 0
        self._ahead = 0  # bytes that may be read all the same
        self._audio_at = self._loop.time()
        self._said_at = -math.inf  # when the last message came
        self._slowed: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self.refused: asyncio.Future[Objection] = self._loop.create_future()

    def begin(self) -> None:
        self._caller.listen(self._receive, self._count, self._object_to)
        if not self._stopped:
            self._caller.resume()

    def end(self) -> None:
        """Drop whatever comes from now on."""
        self._caller.ignore()
        self._caller.resume()
        self._worker = None
        for timer in (self._slowed, self._looking):
            if timer:
                timer.cancel()

    def admitted(self) -> None:
        """There is a slot: more may be held."""
        self.in_line = False
        self._audio_at = self._loop.time()
        self.go_on()

    def pass_to(self, worker: Peer | None) -> None:
        """From now on frames go straight to this worker, which has been sent all that is held."""
        self._worker = worker
        if worker:
            worker.unblocked = self.go_on
        self.go_on()

    def insert(self, frame: Frame) -> None:
        """A message that the caller has not sent themselves: the end, or what a muted client would
        say. What was read ahead of its time would come after that, and is dropped."""
        self._drop_waiting()
        self._mute.receive(frame, self._loop.time())
        self._relay.hold(frame)
        if self._worker:
            self._worker.send_now(frame)

    def look_for_mute(self, now: float) -> None:
        """To be called some times a second: end what a muted client has left open."""
        lived_at = max(self._said_at, self._caller.lived_at)
        if self._mute.look(now, not self._stopped, lived_at):
            self.insert(serialize(Flush(answered=False)))
        elif self._mute.silent(now):
            self._caller.ping()

    def go_on(self) -> None:
        """Read again, if nothing hinders it any more: less is held, or a worker takes more."""
        if not self._stopped or self._held_up:
            return
        self._stopped = False
        while self._waiting and not self._stopped:
            first = self._waiting.popleft()
            if isinstance(first, Objection):
                self._refuse(first)
                break
            self._waiting_bytes -= len(first) + FRAME_COSTS
            self._pass_on(first)
        if not self._stopped:
            self._caller.resume()

    @property
    def held_bytes(self) -> int:
        return self._relay.held_bytes + self._waiting_bytes

    def look_after(self, now: float) -> None:
        """To be called twice a second or so."""
        limit_s = self._limits.no_audio_s
        if not limit_s or self.in_line or self._stopped or self.refused.done():
            return
        if now - self._audio_at > limit_s:
            sentence = f"no audio was received for {limit_s:g} s"
            self._object_to(
                Objection("session_timeout", sentence, CloseCode.TIMEOUT, False, "idle_timeout")
            )

    def end_for(self, sentence: str) -> None:
        """What is held has no room any more."""
        self._refuse(Objection("rate_limit", sentence, CloseCode.TOO_FAST, at_once=True))

    @property
    def _held_up(self) -> bool:
        return (
            self._slowed is not None
            or self._relay.full
            or self._relay.held_bytes > self._memory.level
            or (self.in_line and self._relay.held_bytes > self._most_in_line)
            or (self._worker is not None and self._worker.blocked)
            or self.refused.done()
        )

    @property
    def _most_in_line(self) -> float:
        """Bytes that may be held now; frames of 10 ms are reckoned with."""
        a_second = self._relay.config.bytes_per_second + 100 * FRAME_COSTS
        return min(self._limits.in_line_s * a_second, self._memory.level_in_line)

    def _receive(self, frame: Frame) -> None:
        if self._stopped:
            self._waiting.append(frame)
            costs = len(frame) + FRAME_COSTS
            self._waiting_bytes += costs
            self._ahead -= costs
            if self._ahead <= 0:
                self._caller.pause()
        else:
            self._pass_on(frame)

    def _pass_on(self, frame: Frame) -> None:
        now = self._loop.time()
        self._mute.receive(frame, now)
        self._relay.hold(frame)
        if self._worker:
            self._worker.send_now(frame)
        if self.refused.done():
            return
        if isinstance(frame, str):
            self._said_at = now
            if self._relay.wordy:
                self.end_for("more messages came than can be held, with no audio between them")
        elif frame:
            self._audio_at = now
        try:
            if wait := self._pace.receive(frame, now):
                self._slow_down(wait)
        except TooFast as error:
            self.end_for(str(error))
        if self._held_up:
            self._stop()

    def _count(self, fragment: bool) -> None:
        """A frame came that is nothing to a session."""
        if self.refused.done():
            return
        try:
            if wait := self._pace.receive_part(fragment, self._loop.time()):
                self._slow_down(wait)
        except TooFast as error:
            self.end_for(str(error))
        if self._held_up:
            self._ahead = 0
            self._stop()

    def _slow_down(self, wait: float) -> None:
        if self._slowed is None:
            self._slowed = self._loop.call_later(min(wait, SLOWED_S), self._was_slowed)

    def _was_slowed(self) -> None:
        self._slowed = None
        self.go_on()

    def _stop(self) -> None:
        self._stopped = True
        if not self._waiting:
            self._ahead = 0
        if self._ahead <= 0:
            self._caller.pause()
        if self._looking is None:
            self._caller.ping()
            self._looking = self._loop.call_later(SLOWED_S, self._look)

    def _look(self) -> None:
        """Read ahead while the client may take us for dead."""
        self._looking = None
        self.go_on()
        if not self._stopped or self.refused.done():
            return
        late_s = self._caller.ping()
        if late_s > LATE_S and self._room:
            self._ahead = AHEAD
            self._caller.resume()
        elif late_s > TOO_LATE_S and self._caller.answers:
            self.end_for(
                f"more is sent than is taken: {self.held_bytes} bytes wait here and {late_s:.0f} s "
                "of it on the way; send no faster than real time, or wait for ack"
            )
            return
        self._looking = self._loop.call_later(SLOWED_S, self._look)

    @property
    def _room(self) -> bool:
        """Whether more may be read than is passed on."""
        memory, held = self._memory, self.held_bytes
        level = min(memory.level, memory.level_in_line) if self.in_line else memory.level
        return held < min(self._limits.most, level)

    def _object_to(self, objection: Objection) -> None:
        """Take nothing more of the caller; of what was said before everything that may count."""
        if self._waiting and not objection.at_once:
            self._waiting.append(objection)
        else:
            self._refuse(objection)
        self._caller.ignore()
        self._caller.resume()  # for the rest of a frame that is too long

    def _refuse(self, objection: Objection) -> None:
        if not self.refused.done():
            self.refused.set_result(objection)
        self._stopped = True
        if objection.at_once:
            self._drop_waiting()
        self._caller.ignore()
        self._caller.resume()

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
