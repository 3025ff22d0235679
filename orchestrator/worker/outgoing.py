"""
What the client of a session is told: a queue, and its way to the wire.

A client that reads slowly delays nobody else. When much waits for it, partials are dropped first;
when too much does, or one message takes too long, the session ends.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from dalston.orchestrator.process.request_ids import named
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    Ack,
    Final,
    Frame,
    Partial,
    ServerMessage,
    SessionEnd,
    Snapshot,
    serialize,
)
from dalston.orchestrator.transcription.session import Session
from dalston.orchestrator.worker.stage_times import StageTimes

# Messages the client has not read. Partials are dropped above the first, the session ends above
# the others: a final is a few hundred bytes, so this is hours of speech.
PARTIALS_WAITING, MESSAGES_WAITING, CHARACTERS_WAITING = 64, 4096, 2 << 20


class SlowReader(Exception):
    """The client does not read what it is told."""


class Connection(Protocol):
    """To the client: protocol/websocket_peer.py, or a test's."""

    def listen(self, on_frame: Callable[[Frame], None], on_leave: Callable[[], None]) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    async def send(self, frame: str) -> None:
        """Waits as long as the client does not read. Raises ConnectionError."""
        ...


class Outgoing:
    """The messages that the client of one session has yet to be sent, in order."""

    def __init__(
        self, session: Session, connection: Connection, reader_s: float, times: StageTimes
    ):
        """reader_s: for a message to leave."""
        self._session, self._connection, self._reader_s = session, connection, reader_s
        self._times = times
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._waiting: asyncio.Queue[str | None] = asyncio.Queue()
        self._characters = 0  # in it
        self._finalised = session.received
        self.close_code = CloseCode.NORMAL  # once all is said

    @property
    def finalised(self) -> int:
        """The position, in samples, from which a session continues with the last snapshot told."""
        return self._finalised

    @property
    def _elapsed_s(self) -> float:
        """How long the session has lasted. Between a worker's last snapshot and its loss nobody
        counted."""
        return round(self._session.elapsed_before + self._loop.time() - self._began, 3)

    def tell(self, message: ServerMessage) -> None:
        """Queue a message. Raises SlowReader if too much waits already."""
        waiting = self._waiting.qsize()
        if isinstance(message, Partial | Ack) and waiting >= PARTIALS_WAITING:
            return
        if waiting >= MESSAGES_WAITING or self._characters >= CHARACTERS_WAITING:
            raise SlowReader
        if isinstance(message, SessionEnd):
            message.stats.final_stages_ms = self._times.means_ms()
            message = msgspec.structs.replace(message, wall_seconds=self._elapsed_s)
        elif isinstance(message, Snapshot):
            message = msgspec.structs.replace(message, elapsed_seconds=self._elapsed_s)
        began = self._loop.time()
        text = serialize(named(message))
        if isinstance(message, Final):
            self._times.add("serialisation", self._loop.time() - began)
        elif isinstance(message, Snapshot):
            self._finalised = message.replay_from
        self._waiting.put_nowait(text)
        self._characters += len(text)
        self._times.told(message, began)

    def close(self) -> None:
        """End the queue: nothing follows."""
        self._waiting.put_nowait(None)

    async def write(self) -> int | None:
        """Send it all: the code to close with, or None if the client has left. Raises
        SlowReader."""
        try:
            while (text := await self._waiting.get()) is not None:
                self._characters -= len(text)
                async with asyncio.timeout(self._reader_s):
                    await self._connection.send(text)
        except TimeoutError:
            raise SlowReader from None
        except ConnectionError:
            return None
        return self.close_code
