"""
A caller: a client protocol over a transport. It is all that a call knows of its client.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from dalston.gateway import metrics
from dalston.gateway.calls.memory import FRAME_COSTS
from dalston.gateway.calls.unpacking import Unpacking
from dalston.gateway.protocols.protocol import (
    Asked,
    ClientError,
    ClientProtocol,
    Container,
    Opening,
    Reply,
)
from dalston.gateway.transport.transport import Transport
from dalston.orchestrator.process.request_ids import named, request_id
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    EndReason,
    Error,
    ErrorCode,
    Frame,
    ServerMessage,
    prefix,
    serialize,
)

_ERROR = prefix(Error)
_UNSENT = 1 << 16  # bytes of replies that may wait for a client to read


class CallRefused(Exception):
    """A caller is sent away: the code of the error they are told, a sentence, the close code."""

    def __init__(self, code: ErrorCode, sentence: str, close_code: int):
        super().__init__(sentence)
        self.code: ErrorCode = code
        self.close_code = close_code


class Objection(NamedTuple):
    """Why nothing more is taken from a caller, and the close code for it."""

    code: ErrorCode
    sentence: str
    close_code: CloseCode
    at_once: bool  # else what was said before is finished first
    reason: EndReason = "terminated"  # of session.end then


class Caller:
    """A connected client. What it says and is told are messages of ours, as text, and audio."""

    def __init__(
        self, transport: Transport, protocol: ClientProtocol, opening: Opening, longest: int
    ):
        """longest: bytes of a frame."""
        self._transport, self._protocol, self._longest = transport, protocol, longest
        self.opening = opening
        self._early = list[Frame]()  # what was said before anybody listened
        self._unsent = deque[Frame]()  # replies that the client did not take at once
        self._unsent_bytes = 0
        self._open = False
        self._container: Container | None = None  # that their audio comes in
        self._unpacking: Unpacking | None = None
        transport.when_writable(self._flush)

    @property
    def address(self) -> str:
        return self._transport.address

    async def open(self) -> None:
        """Open the connection, and greet, if that was not done before. Raises Disconnected."""
        if not self._open:
            await self._transport.accept(self._protocol.subprotocols)
            self._open = True
            await self.send(self._protocol.greeting())

    @property
    def opens_at_once(self) -> bool:
        """Whether the connection is opened for everybody, and not only for who gets a session."""
        return self._protocol.opens_at_once

    @property
    def shows_key_later(self) -> bool:
        """Whether they show their key only with what they ask for."""
        return self._protocol.shows_key_later

    @property
    def resumes(self) -> bool:
        """Whether they can go on with a session at another gateway, if it has acks. From the middle
        of a container nobody can."""
        return self._protocol.resumes and self._container is None

    async def refuse(self, error: Error, close_code: int) -> None:
        """They get no session. Raises Disconnected."""
        if self._open:
            await self.tell(error)
            return await self.close(close_code)
        metrics.ERRORS.labels(error.code).inc()
        answer = self._protocol.denial(error, request_id.get())
        await self._transport.deny(answer.status, answer.body, answer.headers)

    def asked(self) -> Asked | None:
        """What the caller asks for, if it is known by now. Raises ParameterError."""
        return self._protocol.asked()

    async def asked_later(self, usual_s: float) -> Asked:
        """What the caller asks for, once they have said it. usual_s: how long that may take, unless
        their protocol has its own patience. Raises ParameterError, TimeoutError if they do not say
        it in time, and CallRefused for what they send before."""
        known: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
        kept = 0  # bytes

        def object_to(objection: Objection) -> None:
            fail(CallRefused(objection.code, objection.sentence, objection.close_code))

        def fail(error: Exception) -> None:
            self.pause()
            if not known.done():
                known.set_exception(error)

        def receive(frame: Frame) -> None:
            nonlocal kept
            if known.cancelled() or (known.done() and known.exception()):
                return  # nobody waits any more
            kept += len(frame) + FRAME_COSTS
            try:
                self._early += self._meaning(frame)
                if known.done():
                    return
                if self._unsent_bytes > _UNSENT:
                    sentence = "what is sent is not read"
                    raise CallRefused("slow_reader", sentence, CloseCode.SLOW_READER)
                if (asked := self._protocol.asked()) is not None:
                    known.set_result(asked)
                    self.pause()
                elif kept > self._longest:
                    sentence = f"more than {self._longest} bytes came before any settings"
                    raise CallRefused("invalid_message", sentence, CloseCode.TOO_BIG)
            except ClientError as error:
                object_to(_no_sense(error))
            except Exception as error:
                fail(error)

        def count(_: bool) -> None:
            nonlocal kept
            kept += FRAME_COSTS

        self._transport.listen(receive, lambda size: object_to(self._too_long(size)), count)
        self.resume()
        async with asyncio.timeout(self._protocol.patience_s or usual_s):
            return await known

    def unpack(self, container: Container | None) -> None:
        """Their audio comes in this; to be said before listen()."""
        self._container = container

    def listen(
        self,
        receive: Callable[[Frame], None],
        count: Callable[[bool], None],
        object_to: Callable[[Objection], None],
    ) -> None:
        """From now on `receive` is called with each message, and with audio; `count` for each frame
        that is neither, with whether it is a fragment; `object_to` with what cannot be taken."""
        if self._container:
            self._unpacking = Unpacking(
                self._container, receive, lambda sentence: object_to(_no_audio(sentence))
            )
            receive = self._unpacking.push

        def receive_frame(frame: Frame) -> None:
            try:
                meaning = self._meaning(frame)
            except ClientError as error:
                return object_to(_no_sense(error))
            for part in meaning:
                receive(part)
            if not meaning:
                count(False)
            if self._unsent_bytes > _UNSENT:
                sentence = "what is sent is not read"
                object_to(Objection("slow_reader", sentence, CloseCode.SLOW_READER, at_once=True))

        early, self._early = self._early, []
        for part in early:
            receive(part)
        self._transport.listen(receive_frame, lambda size: object_to(self._too_long(size)), count)

    def _too_long(self, size: int) -> Objection:
        sentence = f"a frame of {size} bytes; {self._longest} at most"
        return Objection("invalid_message", sentence, CloseCode.TOO_BIG, at_once=False)

    def _meaning(self, frame: Frame) -> list[Frame]:
        """Raises ClientError."""
        meaning = list[Frame]()
        for part in self._protocol.receive(frame):
            if isinstance(part, Reply):
                self._unsent.append(part.frame)
                self._unsent_bytes += len(part.frame) + FRAME_COSTS
                self._flush()
            else:
                meaning.append(part)
        return meaning

    def _flush(self) -> None:
        """Send the replies that wait, as far as the client takes them."""
        while self._unsent and self._transport.send_now(self._unsent[0]):
            self._unsent_bytes -= len(self._unsent.popleft()) + FRAME_COSTS

    def ignore(self) -> None:
        """Drop whatever comes from now on."""
        self._transport.ignore()
        if self._unpacking:
            self._unpacking.close()

    def pause(self) -> None:
        """Read no more, and hear nothing more."""
        self._transport.pause()
        if self._unpacking:
            self._unpacking.pause()

    def resume(self) -> None:
        self._transport.resume()
        if self._unpacking:
            self._unpacking.resume()

    def ping(self) -> float:
        """Ask whether the client lives, unless it was asked and has not answered: the seconds since
        then."""
        return self._transport.ping()

    @property
    def answers(self) -> bool:
        """Whether the client is known to ask, or to answer, whether the other side lives."""
        return self._transport.answers

    @property
    def lived_at(self) -> float:
        """When the client last asked or answered so, by the loop's clock; -inf: never."""
        return self._transport.lived_at

    def say(self, message: str) -> Sequence[Frame]:
        """Tell the caller at once. Frames that the client did not take are returned, to be sent;
        earlier replies among them."""
        if message.startswith(_ERROR):
            metrics.ERRORS.labels(msgspec.json.decode(message, type=_Coded).code).inc()
        frames = self._protocol.say(message)
        if self._unsent:
            frames = [*self._unsent, *frames]
            self._unsent.clear()
            self._unsent_bytes = 0
        for at, frame in enumerate(frames):
            if not self._transport.send_now(frame):
                return frames[at:]
        return ()

    async def send(self, frames: Sequence[Frame]) -> None:
        """Send frames of the protocol, and wait as long as the client does not read. Raises
        Disconnected."""
        await self.open()
        for frame in frames:
            await self._transport.send(frame)

    async def tell(self, message: ServerMessage) -> None:
        """Tell the caller, and wait as long as they do not read. Raises Disconnected."""
        await self.send(self.say(serialize(named(message))))

    async def close(self, reason: int, sentence: str = "") -> None:
        """reason: a CloseCode, or what a worker has closed with. Raises Disconnected."""
        await self._transport.close(self._protocol.close_code(reason), sentence)

    async def answered(self, patience_s: float) -> bool:
        """Whether the client closes its side too, in time: it has read all that it was told."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                return await self._transport.answered()
        return False

    async def until_disconnected(self) -> None:
        await self._transport.until_disconnected()


class _Coded(msgspec.Struct):
    code: str


def _no_audio(sentence: str) -> Objection:
    return Objection("invalid_audio", sentence, CloseCode.INVALID_PARAMETER, at_once=False)


def _no_sense(error: ClientError) -> Objection:
    return Objection("invalid_message", str(error), CloseCode.INVALID_PARAMETER, at_once=True)
