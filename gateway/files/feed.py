"""
A caller that is the gateway itself: it says what a recording says, as fast as its session takes it,
and keeps what it is told. So a recording has all that callers have: a slot, a place in the line,
its key's limits, and another worker if its own is lost.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from dalston.gateway.protocols.protocol import Asked, ClientProtocol
from dalston.orchestrator.protocol.messages import (
    End,
    Frame,
    ServerMessage,
    SessionConfig,
    parse_server,
    serialize,
)


class Recorded(ClientProtocol):
    """Our own messages, of a caller whose settings are known."""

    def __init__(self, config: SessionConfig):
        self._config = config

    def asked(self) -> Asked:
        return Asked(self._config)

    def receive(self, frame: Frame) -> Sequence[Frame]:
        return (frame,)

    def say(self, message: str) -> Sequence[Frame]:
        return (message,)

    def close_code(self, reason: int) -> int:
        return reason


class Feed:
    """The connection of such a caller: a Transport without a socket."""

    answers = False
    lived_at = math.inf

    def __init__(self, address: str):
        """address: of the client that the recording came from."""
        self.address = address
        self._receive: Callable[[Frame], None] = _nobody
        self._reading = asyncio.Event()  # somebody listens, and takes more
        self._told = asyncio.Queue[ServerMessage | Exception | None]()
        self._left = asyncio.Event()

    # For whoever has the recording.

    async def say(self, audio: AsyncIterator[bytes]) -> None:
        """Send all of it, and the end."""
        try:
            async for piece in audio:
                await self._reading.wait()
                self._receive(piece)
            await self._reading.wait()
            self._receive(serialize(End()))
        except Exception as error:
            self._told.put_nowait(error)

    async def told(self) -> ServerMessage | None:
        """The next message; None: there are no more. Raises what `say` failed with."""
        message = await self._told.get()
        if isinstance(message, Exception):
            raise message
        return message

    def leave(self) -> None:
        """Hang up, and tell whoever waits for a message that there are no more."""
        self._left.set()
        self._told.put_nowait(None)

    # For the call.

    async def accept(self, subprotocols: Sequence[str]) -> None:
        pass

    async def deny(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        raise AssertionError("it is open from the beginning")

    def listen(
        self,
        receive: Callable[[Frame], None],
        on_too_long: Callable[[int], None] | None = None,
        on_part: Callable[[bool], None] | None = None,
    ) -> None:
        self._receive = receive

    def when_writable(self, call: Callable[[], None]) -> None:
        pass

    def ignore(self) -> None:
        self._receive = _nobody

    def pause(self) -> None:
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def ping(self) -> float:
        return 0.0

    def send_now(self, frame: Frame) -> bool:
        self._told.put_nowait(parse_server(frame))
        return True

    async def send(self, frame: Frame) -> None:
        self.send_now(frame)

    async def close(self, code: int, sentence: str = "") -> None:
        self.ignore()
        self._told.put_nowait(None)

    async def answered(self) -> bool:
        return True  # what it was told it has

    async def until_disconnected(self) -> None:
        await self._left.wait()


def _nobody(_: Frame) -> None:
    pass
