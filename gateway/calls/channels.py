"""
The channels of one connection, each transcribed by a session of its own.

A client sends the samples of its channels in turn, as WAV files have them. They are taken apart
here, and each channel is a caller of its own: it has its own session, slot, relay and record, and
what is told of it says its number. The connection is read as slowly as the slower of the sessions
needs, and closed when all have ended, or as soon as one has failed.
"""

import asyncio
import contextlib
from array import array
from collections.abc import Callable, Sequence

from dalston.gateway.calls.caller import Caller, CallRefused, Objection
from dalston.gateway.calls.relay import Relay
from dalston.gateway.protocols.protocol import Opening
from dalston.orchestrator.process.request_ids import named
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    SAMPLE_BYTES,
    Encoding,
    Frame,
    MessageError,
    Ping,
    ServerMessage,
    SessionEnd,
    of_channel,
    parse,
    prefix,
    serialize,
)

# What the other channels have to tell when one has failed. All fail together in a drain, for one.
TOGETHER_S = 0.5
_END = prefix(SessionEnd)
_ARRAYS = {1: "B", 2: "H", 4: "I"}  # of numbers that have so many bytes, whatever they mean


def begin_together(relays: Sequence[Relay]) -> list[int]:
    """Let sessions of one connection go on from the same moment: its client sends again what any of
    them needs. Returns how many bytes of that each needs no more. Raises CallRefused."""
    live = [relay for relay in relays if not relay.end]
    formats = {(r.config.encoding, r.config.sample_rate, r.config.channels) for r in live}
    if len(formats) > 1 or any(relay.config.channels > 1 for relay in relays):
        sentence = "these sessions were not the channels of one connection"
        raise CallRefused("invalid_parameter", sentence, CloseCode.INVALID_PARAMETER)
    first = min(live, key=lambda relay: relay.received, default=None)
    for relay in relays:
        relay.resume_offset_ms = first.resume_offset_ms if first else relay.resume_offset_ms
    return [max(0, relay.received - first.received) if first else 0 for relay in relays]


class Splitter:
    """Takes the channels of audio apart, however it is cut."""

    def __init__(self, encoding: Encoding, channels: int):
        self._type, self._channels = _ARRAYS[SAMPLE_BYTES[encoding]], channels
        self._whole = SAMPLE_BYTES[encoding] * channels  # bytes
        self._rest = b""  # of a frame of all channels that is not complete

    def split(self, data: bytes) -> list[bytes]:
        data = self._rest + data if self._rest else data
        rest = len(data) % self._whole
        data, self._rest = (data[:-rest], data[-rest:]) if rest else (data, b"")
        samples = array(self._type, data)
        return [samples[number :: self._channels].tobytes() for number in range(self._channels)]


class Channel:
    """One of them. To a call it is what a Caller is."""

    def __init__(self, connection: "Channels", number: int, known: int):
        """known: bytes of audio at the beginning that its session needs no more."""
        self._connection, self.number, self._known = connection, number, known
        self._receive: Callable[[Frame], None] | None = None
        self.count: Callable[[bool], None] | None = None
        self.object_to: Callable[[Objection], None] | None = None
        self.awaited = True  # it is to listen, and does not yet
        self.paused = True
        self.ended = False  # its client was told session.end

    # What the connection says.

    @property
    def listens(self) -> bool:
        return self._receive is not None

    def hear(self, frame: Frame) -> None:
        if self._receive is None:
            return
        if self._known and isinstance(frame, bytes):
            known, self._known = self._known, max(0, self._known - len(frame))
            frame = frame[known:]
        self._receive(frame)

    # What a call asks, as of a Caller.

    @property
    def address(self) -> str:
        return self._connection.caller.address

    @property
    def opening(self) -> Opening:
        return self._connection.caller.opening

    @property
    def resumes(self) -> bool:
        return self._connection.caller.resumes

    @property
    def answers(self) -> bool:
        return self._connection.caller.answers

    @property
    def lived_at(self) -> float:
        return self._connection.caller.lived_at

    def ping(self) -> float:
        return self._connection.caller.ping()

    def listen(
        self,
        receive: Callable[[Frame], None],
        count: Callable[[bool], None],
        object_to: Callable[[Objection], None],
    ) -> None:
        self._receive, self.count, self.object_to = receive, count, object_to
        self.awaited = False
        self._connection.listen()

    def ignore(self) -> None:
        self._receive = self.count = self.object_to = None
        self.awaited = False
        self.resume()

    def pause(self) -> None:
        if self.listens:
            self.paused = True
            self._connection.caller.pause()

    def resume(self) -> None:
        self.paused = False
        self._connection.resume()

    async def open(self) -> None:
        await self._connection.open()

    def say(self, message: str) -> Sequence[Frame]:
        self.ended = self.ended or message.startswith(_END)
        return self._connection.caller.say(of_channel(message, self.number))

    async def send(self, frames: Sequence[Frame]) -> None:
        await self._connection.caller.send(frames)

    async def tell(self, message: ServerMessage) -> None:
        await self.send(self.say(serialize(named(message))))

    async def close(self, reason: int, sentence: str = "") -> None:
        """The session has ended. Returns once the connection is closed."""
        self.ignore()
        await self._connection.close(self, reason, sentence)

    async def answered(self, patience_s: float) -> bool:
        return await self._connection.answered(patience_s)

    async def until_disconnected(self) -> None:
        await self._connection.until_disconnected()


class Channels:
    """A caller, as its channels."""

    def __init__(self, caller: Caller, known: Sequence[int], encoding: Encoding):
        """known: bytes of each channel that its session needs no more, of a client that begins
        with what any of them needs."""
        self.caller = caller
        self._splitter = Splitter(encoding, len(known))
        self.all = [Channel(self, number, size) for number, size in enumerate(known)]
        self._open = set(self.all)
        self._ended = asyncio.Event()  # every channel
        self._reason: tuple[int, str] = (CloseCode.NORMAL, "")
        # What all wait for is done once.
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._answered: asyncio.Task[bool] | None = None
        self._leaving: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """To be called last. Nothing is left that refers to itself."""
        if self._leaving:
            self._leaving.cancel()
        self.all = []
        self._open.clear()

    async def open(self) -> None:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self.caller.open())
        await asyncio.shield(self._opening)

    # Reading.

    def listen(self) -> None:
        """Hear the client as soon as every channel listens."""
        if not any(channel.awaited for channel in self.all):
            self.caller.listen(self._hear, self._count, self._object_to)

    def resume(self) -> None:
        if not any(channel.paused for channel in self.all):
            self.caller.resume()

    def _hear(self, frame: Frame) -> None:
        if isinstance(frame, bytes):
            for channel, part in zip(self.all, self._splitter.split(frame), strict=True):
                channel.hear(part)
            return
        for channel in self._addressed(frame):
            channel.hear(frame)

    def _addressed(self, text: str) -> Sequence[Channel]:
        """Whom a message is for: the channel that it names, or all. One answers what is said of the
        connection, or makes no sense."""
        try:
            message = parse(text)
        except MessageError:
            return self._first
        if message.channel is not None:
            return self.all[message.channel : message.channel + 1] or self._first
        return self._first if isinstance(message, Ping) else self.all

    @property
    def _first(self) -> Sequence[Channel]:
        return [channel for channel in self.all if channel.listens][:1]

    def _count(self, fragment: bool) -> None:
        for channel in self._first:
            if channel.count:
                channel.count(fragment)

    def _object_to(self, objection: Objection) -> None:
        for channel in self.all:
            if channel.object_to:
                channel.object_to(objection)

    # The end.

    async def close(self, channel: Channel, reason: int, sentence: str) -> None:
        self._open.discard(channel)
        if self._reason[0] == CloseCode.NORMAL:
            self._reason = reason, sentence
        if not self._open:
            self._ended.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if channel.ended else TOGETHER_S):
                await self._ended.wait()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self.caller.close(*self._reason))
        await asyncio.shield(self._closing)

    async def answered(self, patience_s: float) -> bool:
        if self._answered is None:
            self._answered = asyncio.ensure_future(self.caller.answered(patience_s))
        return await asyncio.shield(self._answered)

    async def until_disconnected(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self.caller.until_disconnected())
        await asyncio.shield(self._leaving)
