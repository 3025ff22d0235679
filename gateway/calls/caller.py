"""
A caller: a client protocol over a transport. It is all that a call knows of its client.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from dalston.gateway import metrics
from dalston.gateway.protocols.protocol import Asked, ClientProtocol, Opening, Reply
from dalston.gateway.transport.transport import Transport
from dalston.orchestrator.process.request_ids import named
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    LONGEST_FRAME,
    Error,
    ErrorCode,
    Frame,
    ServerMessage,
    prefix,
    serialize,
)

_ERROR = prefix(Error)


class CallRefused(Exception):
    """A caller is sent away: the code of the error they are told, a sentence, the close code."""

    def __init__(self, code: ErrorCode, sentence: str, close_code: int):
        super().__init__(sentence)
        self.code: ErrorCode = code
        self.close_code = close_code


class Caller:
    """A connected client. What it says and is told are messages of ours, as text, and audio."""

    def __init__(self, transport: Transport, protocol: ClientProtocol, opening: Opening):
        self._transport, self._protocol = transport, protocol
        self.opening = opening
        self._early = list[Frame]()  # what was said before anybody listened
        self._unsent = list[Frame]()  # replies that the client did not take at once

    @property
    def address(self) -> str:
        return self._transport.address

    async def accept(self) -> None:
        """Open the connection, and greet. Raises Disconnected."""
        await self._transport.accept(self._protocol.subprotocols)
        await self.send(self._protocol.greeting())

    async def asked(self, patience_s: float) -> Asked:
        """What the caller asks for. Raises ParameterError, TimeoutError if they do not say it in
        time, and CallRefused if they say too much before it."""
        if (asked := self._protocol.asked()) is not None:
            return asked
        known: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()

        def receive(frame: Frame) -> None:
            self._early += self._meaning(frame)
            if known.done():
                return
            try:
                if (asked := self._protocol.asked()) is not None:
                    known.set_result(asked)
                elif sum(map(len, self._early)) > LONGEST_FRAME:
                    sentence = f"more than {LONGEST_FRAME} bytes came before any settings"
                    raise CallRefused("invalid_message", sentence, CloseCode.TOO_BIG)
                else:
                    return
            except Exception as error:
                known.set_exception(error)
            self.pause()

        self._transport.listen(receive)
        async with asyncio.timeout(patience_s):
            return await known

    def listen(
        self, receive: Callable[[Frame], None], on_too_long: Callable[[int], None] | None = None
    ) -> None:
        """From now on `receive` is called with each message, and with audio; `on_too_long` with the
        size in bytes of a frame that is too long."""

        def receive_frame(frame: Frame) -> None:
            for meaning in self._meaning(frame):
                receive(meaning)

        early, self._early = self._early, []
        for meaning in early:
            receive(meaning)
        self._transport.listen(receive_frame, on_too_long)

    def _meaning(self, frame: Frame) -> list[Frame]:
        meaning = list[Frame]()
        for one in self._protocol.receive(frame):
            if not isinstance(one, Reply):
                meaning.append(one)
            elif not self._transport.send_now(one.frame):
                self._unsent.append(one.frame)
        return meaning

    def ignore(self) -> None:
        """Drop whatever comes from now on."""
        self._transport.listen(_nobody)

    def pause(self) -> None:
        """Read no more. What was read already is still heard."""
        self._transport.pause()

    def resume(self) -> None:
        self._transport.resume()

    def say(self, message: str) -> Sequence[Frame]:
        """Tell the caller at once; what the client did not take is returned, to be sent."""
        if message.startswith(_ERROR):
            metrics.ERRORS.labels(msgspec.json.decode(message, type=_Coded).code).inc()
        frames = self._protocol.say(message)
        if self._unsent:
            frames, self._unsent = [*self._unsent, *frames], []
        for at, frame in enumerate(frames):
            if not self._transport.send_now(frame):
                return frames[at:]
        return ()

    async def send(self, frames: Sequence[Frame]) -> None:
        """Frames of the protocol. Waits as long as the client does not read. Raises
        Disconnected."""
        for frame in frames:
            await self._transport.send(frame)

    async def tell(self, message: ServerMessage) -> None:
        """Tell the caller, and wait as long as they do not read. Raises Disconnected."""
        await self.send(self.say(serialize(named(message))))

    async def close(self, reason: int, sentence: str = "") -> None:
        """reason: a CloseCode, or what a worker has closed with. Raises Disconnected."""
        await self._transport.close(self._protocol.close_code(reason), sentence)

    async def until_disconnected(self) -> None:
        await self._transport.until_disconnected()


class _Coded(msgspec.Struct):
    code: str


def _nobody(_: Frame) -> None:
    pass
