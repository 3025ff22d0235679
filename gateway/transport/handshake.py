"""
A connection has limited time to say what it wants, and as much to take the answer. uvicorn closes
one that is idle after an answer, but none that never asked: somebody who opens connections and
sends nothing would keep them for ever. A body that comes steadily has more time: as much as whoever
reads it gives.

What comes in crumbs is read in rounds, or each byte would wake the gateway. Of those who have asked
nothing yet only so many are kept: who has waited longest goes, for an honest client asks at once.
"""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from dalston.gateway.transport.read_rounds import ROUND_S

MOST_WAITING = 256  # connections that have asked nothing, or nothing more
STEADY = 4096  # bytes of a body in a second, that it has to bring to be waited for
# Less than so many bytes of a request that is not whole; and how often that is no matter.
_CRUMB, _CRUMBS = 4096, 8


def handshake_within(seconds: float) -> type[H11Protocol]:
    """The protocol for uvicorn: HTTP/1.1, each request whole within so many seconds."""
    waiting = dict["Protocol", None]()  # in the order of their last answer

    class Protocol(H11Protocol):
        _late: asyncio.TimerHandle | None = None
        _resting: asyncio.TimerHandle | None = None
        _crumbs = 0
        _came = 0  # bytes, since it was last looked at how many did

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._came += len(data)
            if self._answering:
                waiting.pop(self, None)
            if len(data) < _CRUMB and self._wants_more:
                self._crumbs += 1
                if self._crumbs > _CRUMBS and self._mine and not self._resting:
                    self.transport.pause_reading()
                    self._resting = self.loop.call_later(ROUND_S, self._rested)

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            self._forget()
            super().handle_websocket_upgrade(event)

        def on_response_complete(self) -> None:
            self._wait()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            if self._resting:
                self._resting.cancel()
            super().connection_lost(exc)

        @property
        def _answering(self) -> bool:
            cycle = cast("RequestResponseCycle | None", self.cycle)
            return cycle is not None and not cycle.response_complete

        @property
        def _mine(self) -> bool:
            return not self.transport.is_closing() and self.transport.get_protocol() is self

        @property
        def _wants_more(self) -> bool:
            """The request that there is is not whole."""
            return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

        @property
        def _steady(self) -> bool:
            """A body comes fast enough, or is not read at the moment."""
            came, self._came = self._came, 0
            reads = self.conn.their_state is h11.SEND_BODY and self._answering
            return reads and (came >= STEADY * seconds or self.flow.read_paused)

        def _rested(self) -> None:
            self._resting = None
            if self._mine and not self.flow.read_paused:
                self.transport.resume_reading()

        def _wait(self) -> None:
            self._forget()
            self._late = self.loop.call_later(seconds, self._end)
            self._crumbs = self._came = 0
            waiting[self] = None
            if len(waiting) > MOST_WAITING:
                oldest = next(iter(waiting))
                oldest._forget()
                oldest.transport.abort()

        def _forget(self) -> None:
            waiting.pop(self, None)
            if self._late:
                self._late.cancel()
                self._late = None

        def _end(self) -> None:
            answering = self._answering
            if self.transport.is_closing() or (self.flow.write_paused and answering):
                self.transport.abort()  # it does not take its answer
            elif (answering and not self._wants_more) or self._steady:
                self._late = self.loop.call_later(seconds, self._end)  # it waits for us
            else:
                self.transport.close()
                self._late = self.loop.call_later(seconds, self._end)

    return Protocol
