"""
What a caller sends: it is held in case its worker is lost, passed on to the worker there is, and
read no faster than it may be sent.

Reading stops while the caller has to slow down, while as much is held as may be, and while the
worker does not take what it is sent. What was read before that waits here.
"""

import asyncio
from collections import deque

from dalston.gateway.calls.caller import Caller, Objection
from dalston.gateway.calls.pace import Pace, TooFast
from dalston.gateway.calls.relay import Relay
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Frame
from dalston.orchestrator.protocol.websocket_peer import Peer

# A client that pushes is not read for at most so long, so that we notice when it leaves.
SLOWED_S = 1.0


class Intake:
    """What one caller sends, on its way to the relay and to the worker there is."""

    def __init__(self, caller: Caller, relay: Relay, pace: Pace):
        self._caller, self._relay, self._pace = caller, relay, pace
        self._loop = asyncio.get_running_loop()
        self._worker: Peer | None = None
        self._stopped = False  # reading
        self._waiting = deque[Frame]()  # was read, and is not passed on yet
        self._slowed: asyncio.TimerHandle | None = None
        self.refused: asyncio.Future[Objection] = self._loop.create_future()

    def begin(self) -> None:
        self._caller.listen(self._receive, self._count, self._object_to)
        if not self._stopped:
            self._caller.resume()

    def end(self) -> None:
        """Drop whatever comes from now on."""
        self._caller.ignore()
        self._worker = None
        if self._slowed:
            self._slowed.cancel()

    def pass_to(self, worker: Peer | None) -> None:
        """From now on frames go straight to this worker, which has been sent all that is held."""
        self._worker = worker
        if worker:
            worker.unblocked = self.go_on
        self.go_on()

    def insert(self, frame: Frame) -> None:
        """A message that the caller has not sent themselves."""
        self._relay.hold(frame)
        if self._worker:
            self._worker.send_now(frame)

    def go_on(self) -> None:
        """Read again, if nothing hinders it any more: less is held, or a worker takes more."""
        if not self._stopped or self._held_up:
            return
        self._stopped = False
        while self._waiting and not self._stopped:
            self._pass_on(self._waiting.popleft())
        if not self._stopped:
            self._caller.resume()

    @property
    def _held_up(self) -> bool:
        return (
            self._slowed is not None
            or self._relay.full
            or (self._worker is not None and self._worker.blocked)
            or self.refused.done()
        )

    def _receive(self, frame: Frame) -> None:
        if self._stopped:
            self._waiting.append(frame)
        else:
            self._pass_on(frame)

    def _pass_on(self, frame: Frame) -> None:
        self._relay.hold(frame)
        if self._worker:
            self._worker.send_now(frame)
        self._keep_pace(frame)

    def _count(self) -> None:
        """A frame came that is nothing to a session."""
        self._keep_pace("")

    def _keep_pace(self, frame: Frame) -> None:
        if self.refused.done():
            return
        try:
            wait = self._pace.receive(frame, self._loop.time())
        except TooFast as error:
            self.refused.set_result(Objection("rate_limit", str(error), CloseCode.TOO_FAST, True))
        else:
            if wait and self._slowed is None:
                self._slowed = self._loop.call_later(min(wait, SLOWED_S), self._was_slowed)
        if self._held_up:
            self._stopped = True
            self._caller.pause()

    def _object_to(self, objection: Objection) -> None:
        """Take nothing more of the caller."""
        if not self.refused.done():
            self.refused.set_result(objection)
        self._stopped = True
        self._caller.ignore()
        self._caller.resume()  # for the rest of a frame that is too long

    def _was_slowed(self) -> None:
        self._slowed = None
        self.go_on()
