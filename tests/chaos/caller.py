"""
A caller who does not give up: reads aloud in real time, and when the connection breaks goes on
with the session at another gateway, as docs/protocol.md says. Notes every broken promise.

Written from the protocol's page alone: it shares no code with the client of this project.
"""

import asyncio
import contextlib
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from door import Door
from readings import Reading
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

CHUNK_S = 0.1
# A gateway that does not answer a ping for so long is taken for dead.
PING_EVERY_S, PONG_WITHIN_S = 1.0, 4.0
BEGIN_WITHIN_S = 10.0
BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.1, 2.0
# A call that is so late is hung; it has met several faults by then, and each took its time.
LATE_S = 120.0

Message = dict[str, Any]
_KEPT = ("segment_id", "text", "start", "end")


@dataclass
class Call:
    """What came of one reading."""

    reading: str
    finals: list[Message] = field(default_factory=list[Message])
    broken: list[str] = field(default_factory=list[str])  # promises, in words
    ended: bool = False  # by session.end
    # To less than was said to be finalised: when, and in words.
    set_back: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    unresumable: str = ""  # why the session could not go on
    unresumable_at: float = 0.0  # time.monotonic
    hung: bool = False
    connections: int = 0
    resumed: int = 0
    refused: int = 0  # no_capacity
    over_quota: int = 0  # the slot of a call before had not come back yet
    warnings: dict[str, int] = field(default_factory=dict[str, int])
    after_endpoint: list[float] = field(default_factory=list[float])  # vad.speech_end -> final, s
    story: list[str] = field(default_factory=list[str])  # what its connections did, and when
    began: float = 0.0  # time.monotonic
    lasted_s: float = 0.0


class _Over(Exception):
    """Nothing more can come of this call."""


class Caller:
    """Makes one call at a time. What it does right now is there for the injector to see."""

    def __init__(self, door: Door, rng: random.Random):
        self.door, self._rng = door, rng
        self._until = 0.0  # reads nothing before
        self.heard: set[Callable[[Caller, Message], None]] = set()
        self.call: Call | None = None
        self.reading: Reading | None = None
        self.session_id = ""
        self.gateway = rng.randrange(len(door.urls))
        self.connection: ClientConnection | None = None
        self.sent = 0.0  # seconds of audio, in this connection
        self.said_everything = False
        self._finalised = 0.0

    @property
    def port(self) -> int:
        """Ours, of the connection; 0 without one."""
        if self.connection is None:
            return 0
        name = self.connection.transport.get_extra_info("sockname")
        return name[1] if name else 0

    @property
    def speaking(self) -> bool:
        """In mid-utterance, with the server listening."""
        if self.connection is None or self.reading is None:
            return False
        return self.reading.spoken(self.sent)

    def stop_reading(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    async def read(self, reading: Reading, paced: bool = True) -> Call:
        """One call, from the first frame to session.end."""
        call = self.call = Call(reading.name, began=time.monotonic())
        self.reading, self.session_id = reading, ""
        self._finalised, self.said_everything = 0.0, False
        try:
            async with asyncio.timeout(reading.seconds + LATE_S):
                await self._persist(call, reading, paced)
        except TimeoutError:
            call.hung = True
            call.broken.append(f"hung: {len(call.finals)} finals, session {self.session_id}")
        except _Over as over:
            call.unresumable, call.unresumable_at = str(over), time.monotonic()
        finally:
            self.call = self.reading = self.connection = None
            call.lasted_s = time.monotonic() - call.began
        return call

    async def _persist(self, call: Call, reading: Reading, paced: bool) -> None:
        wait = BACKOFF_FIRST_S
        while not call.ended:
            finals = len(call.finals)
            try:
                retry_after = await self._connect(call, reading, paced)
            except (OSError, WebSocketException, TimeoutError, EOFError) as error:
                retry_after = 0.0
                self._note(call, f"{error!r:.80}")
            finally:
                self.connection = None
            if call.ended:
                return
            wait = BACKOFF_FIRST_S if len(call.finals) > finals else wait
            # Jittered: the callers of a gateway that died do not come back all at once.
            await asyncio.sleep(max(min(retry_after, 1.0), wait) * self._rng.uniform(0.5, 1.5))
            wait = min(2 * wait, BACKOFF_LAST_S)
            self.gateway = (self.gateway + 1) % len(self.door.urls)

    async def _connect(self, call: Call, reading: Reading, paced: bool) -> float:
        """One connection, to its end; how long to wait before the next."""
        query = reading.parameters | {"ack": "true"}
        if self.session_id:
            query["resume_session_id"] = self.session_id
            if call.finals:
                query["last_segment_id"] = call.finals[-1]["segment_id"]
        call.connections += 1
        patience: dict[str, Any] = {"open_timeout": 3, "close_timeout": 0.5, "ping_interval": None}
        async with self.door.connect(
            self.gateway, query, self._rng, max_queue=1, max_size=None, **patience
        ) as connection:
            try:
                async with asyncio.timeout(BEGIN_WITHIN_S):
                    frame, retry_after = await self._begin(connection, call, reading)
                if frame is None:
                    return retry_after
                self.connection = connection
                sending = asyncio.create_task(self._send(connection, reading, frame, paced))
                watching = asyncio.create_task(self._watch(connection))
                try:
                    await self._listen(connection, call)
                finally:
                    for task in (sending, watching):
                        task.cancel()
                    await asyncio.gather(sending, watching, return_exceptions=True)
            finally:
                if not call.ended:
                    connection.transport.abort()
        return 0.0

    async def _begin(
        self, connection: ClientConnection, call: Call, reading: Reading
    ) -> tuple[int | None, float]:
        """The frame to send from; None and seconds to wait if there is no session."""
        while True:
            message: Message = json.loads(await connection.recv())
            match message["type"]:
                case "session.queued":
                    continue
                case "session.begin" if self.session_id:
                    self._note(call, f"resumed at {message.get('resume_offset_ms')} ms")
                    if message.get("resumed_from") != self.session_id:
                        raise _Over("the server began a new session instead of resuming")
                    call.resumed += 1
                    offset = float(message["resume_offset_ms"]) / 1000
                    if offset < self._finalised - 0.001:
                        sentence = f"to resume at {offset}, but {self._finalised} was finalised"
                        call.set_back.append((time.monotonic(), sentence))
                    return math.ceil(round(offset * reading.rate, 6)), 0.0
                case "session.begin":
                    self.session_id = message["session_id"]
                    self._note(call, f"{self.session_id} begins")
                    return 0, 0.0
                case "error" if message.get("recoverable"):
                    call.refused += 1
                    return None, float(message.get("retry_after", 0))
                case "error" if message["code"] == "rate_limit":
                    call.over_quota += 1
                    return None, 1.0
                case "error":
                    raise _Over(f"{message['code']}: {message['message']}")
                case _:
                    return None, 0.0

    def _note(self, call: Call, event: str) -> None:
        at = time.strftime("%H:%M:%S")
        call.story.append(f"{at} gateway {self.gateway + 1}, finalised {self._finalised}: {event}")

    async def _send(
        self, connection: ClientConnection, reading: Reading, frame: int, paced: bool
    ) -> None:
        """From there on; what was spoken already at once, the rest as it is spoken."""
        assert self.call
        step = round(reading.rate * CHUNK_S)
        controls = [control for control in reading.controls if control[0] >= frame]
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.sent = frame / reading.rate
                while controls and controls[0][0] == frame:
                    await connection.send(json.dumps(controls.pop(0)[1]))
                if frame >= reading.frames:
                    break
                last = min(frame + step, reading.frames, *(at for at, _ in controls[:1]))
                if paced:
                    due = self.call.began + last / reading.rate
                    await asyncio.sleep(due - time.monotonic())
                await connection.send(reading.audio[frame * reading.width : last * reading.width])
                frame = last
            self.said_everything = True
            await connection.send('{"type":"end"}')

    async def _watch(self, connection: ClientConnection) -> None:
        """Drop a connection whose other side does not answer."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(PING_EVERY_S)
                answered = await connection.ping()
                try:
                    async with asyncio.timeout(PONG_WITHIN_S):
                        await answered
                except TimeoutError:
                    # What we do not read cannot answer.
                    if time.monotonic() > self._until + PONG_WITHIN_S:
                        connection.transport.abort()

    async def _listen(self, connection: ClientConnection, call: Call) -> None:
        endpoints = dict[float, float]()
        try:
            while True:
                while (rest := self._until - time.monotonic()) > 0:
                    await asyncio.sleep(rest)
                message: Message = json.loads(await connection.recv())
                if call.ended:
                    call.broken.append(f"{message['type']} after session.end")
                self._hear(call, message, endpoints)
                for listener in list(self.heard):
                    listener(self, message)
        except ConnectionClosed as closed:
            self._note(call, f"{closed!r:.80}")
            if call.ended and connection.close_code not in (1000, 1006):
                call.broken.append(f"closed with {connection.close_code} after session.end")

    def _hear(self, call: Call, message: Message, endpoints: dict[float, float]) -> None:
        match message["type"]:
            case "transcript.final":
                final = {key: message[key] for key in _KEPT}
                ids = [known["segment_id"] for known in call.finals]
                if final["segment_id"] in ids:
                    call.broken.append(f"{final['segment_id']} came twice")
                elif ids and final["segment_id"] < ids[-1]:
                    call.broken.append(f"{final['segment_id']} came behind {ids[-1]}")
                else:
                    call.finals.append(final)
                if message["end"] in endpoints:
                    call.after_endpoint.append(time.monotonic() - endpoints[message["end"]])
            case "vad.speech_end":
                endpoints[message["timestamp"]] = time.monotonic()
            case "ack":
                self._finalised = float(message["finalised"])
            case "warning":
                call.warnings[message["code"]] = call.warnings.get(message["code"], 0) + 1
            case "session.end":
                call.ended = True
                told = [segment["segment_id"] for segment in message["segments"]]
                if told != [final["segment_id"] for final in call.finals]:
                    call.broken.append(f"session.end names {told}, which is not what was told")
                if message["reason"] != "client_end":
                    call.broken.append(f"the server ended the session: {message['reason']}")
            case "error" if message["code"] == "no_capacity":
                call.refused += 1  # it goes on elsewhere, later
            case "error":
                call.broken.append(f"error {message['code']}: {message['message']}")
            case _:
                pass

    async def begins(self, reading: Reading) -> bool:
        """Whether a session begins now; it is ended at once."""
        self.call, self.session_id = Call(reading.name), ""
        patience = {"open_timeout": 3, "close_timeout": 0.5}
        try:
            async with (
                asyncio.timeout(BEGIN_WITHIN_S),
                self.door.connect(self.gateway, {}, self._rng, **patience) as connection,
            ):
                frame, _ = await self._begin(connection, self.call, reading)
                if frame is not None:
                    await connection.send('{"type":"end"}')
                    with contextlib.suppress(ConnectionClosed):
                        while True:
                            await connection.recv()
        except (OSError, WebSocketException, TimeoutError, EOFError, _Over):
            return False
        return frame is not None
