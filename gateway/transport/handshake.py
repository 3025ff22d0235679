"""
A connection has limited time to say what it wants. uvicorn closes one that is idle after an answer,
but none that never asked: somebody who opens connections and sends nothing would keep them for
ever.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def handshake_within(seconds: float) -> type[H11Protocol]:
    """The protocol for uvicorn: HTTP/1.1, each request whole within so many seconds."""

    class Protocol(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            self._wait()

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            self._forget()
            super().handle_websocket_upgrade(event)

        def on_response_complete(self) -> None:
            self._wait()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._forget()
            self._late = self.loop.call_later(seconds, self._end)

        def _forget(self) -> None:
            if self._late:
                self._late.cancel()
                self._late = None

        def _end(self) -> None:
            if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):  # else it waits for us
                self.transport.close()

    return Protocol
