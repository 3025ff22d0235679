"""
A client for dalston's native protocol, to import.

    async with dalston.client.connect("ws://127.0.0.1:8000", language="en") as session:
        await session.send(pcm)      # 16 kHz mono int16 bytes, any size, as they come
        await session.end()
        async for event in session:  # a dict for each message; see docs/protocol.md
            if event["type"] == "transcript.final":
                print(event["text"])

Sending and receiving are independent: do them in two tasks to see text while sending. A connection
that breaks is replaced, and the session goes on as if nothing had happened (docs/clients.md).
Depends on the websockets package alone.
"""

import asyncio
import contextlib
import json
import os
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from dalston.client.gateways import (
    BEGIN_S,
    NO_ANSWER,
    PATH,
    Credential,
    Gateways,
    first_word,
)
from dalston.client.resume import Event, Gone, Heard, Sent, answers_config

__all__ = ["PATH", "Event", "Session", "SessionFailed", "connect"]

RESUME_S = 100.0  # of trouble, then we give up; a server keeps a session for 120 s
STEADY_S = 10.0  # a connection that lasts so long is no trouble any more
BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.2, 5.0
PING_EVERY_S, SILENT_S = 2.0, 8.0  # one that says nothing for so long is lost
UNACKNOWLEDGED_S = 60.0  # without acks its pongs may wait behind much audio, and nothing else comes
# Events that the application has not taken yet: then nothing is read until it does.
UNREAD = 10_000
# Closed so, a session is kept: going away, no code, broken off, failed, restarting, full, proxies.
_KEPT_CODES = (1001, 1005, 1006, 1011, 1012, 1013, 1014)
_ABNORMAL = 1006
_MADE_UP = ("transcript.withdrawn", "vad.speech_end")  # by Heard, at times
_CANNOT = "the connection broke, and the session cannot go on"


class SessionFailed(Exception):
    """The server closed the session before its end, and it could not be gone on with. `code` is
    the WebSocket close code, `error` the last error message, if there was one."""

    def __init__(self, code: int, error: Event | None, sentence: str = ""):
        told = error["message"] if error else f"the connection closed with code {code}"
        super().__init__(sentence or told)
        self.code, self.error = code, error


class Session:
    """One transcription: send audio, iterate over events."""

    def __init__(
        self,
        gateways: Gateways,
        connection: ClientConnection,
        sent: Sent,
        heard: Sequence[Heard],
        *,
        resume: bool,
        acks: bool,
    ):
        self.ended: Event | None = None  # the session.end message, once it came
        self._gateways, self._connection = gateways, connection
        self._sent, self._heard = sent, heard
        self._resumes, self._acks = resume, acks
        self._ids: list[str | None] = [None for _ in heard]  # of each channel, once it has begun
        self._ended = set[int]()  # channels
        self._error: Event | None = None  # the last
        self._terminated: Event | None = None  # session.terminated of this connection
        self._failure: SessionFailed | None = None
        self._over = False
        self._live: ClientConnection | None = connection  # has been sent all there is
        self._heard_at = asyncio.get_running_loop().time()  # the server's last word
        self._connected_at = self._heard_at
        self._processed = 0.0  # seconds of audio, by any connection
        self._trouble: float | None = None  # loop time of a loss after which nothing went further
        self._wait = BACKOFF_FIRST_S
        self._unread = deque[Event]()
        self._news = asyncio.Event()  # for who iterates
        self._room = asyncio.Event()  # for who sends, and for us when too much is unread
        self._running = asyncio.create_task(self._run())

    # What the application does.

    async def send(self, audio: bytes) -> None:
        """Some audio in the encoding agreed on. Waits while the server is behind, and while the
        connection is away for long.

        Raises SessionFailed, as all that sends, once the session is over.
        """
        if audio:
            await self._send(bytes(audio))

    async def flush(self) -> None:
        """End the utterance here: its final comes at once."""
        await self._message("flush")

    async def clear(self) -> None:
        """Forget the utterance that is being spoken."""
        await self._message("clear")

    async def configure(self, **settings: Any) -> None:
        """Change settings from here on, such as language="es"."""
        await self._message("config", **settings)

    async def ping(self) -> None:
        await self._message("ping")

    async def end(self) -> None:
        """No more audio: what was said is finished, then session.end comes."""
        await self._message("end")

    def abort(self) -> None:
        """Drop the connection without a word; the server takes its slot back."""
        self._running.cancel()
        self._connection.transport.abort()

    async def _message(self, kind: str, **fields: Any) -> None:
        await self._send(json.dumps({"type": kind, **fields}))

    async def _send(self, frame: str | bytes) -> None:
        # What nobody reads is not waited for: the acks may be behind it.
        while self._sent.full and len(self._unread) < UNREAD and not self._over:
            self._room.clear()
            await self._room.wait()
        if self._over:
            raise self._failure or SessionFailed(self._connection.close_code or 1000, None)
        self._sent.hold(frame)
        if self._live:
            try:
                await self._send_held(self._live)
            except ConnectionClosed:
                if not self._resumes:
                    raise self._closed() from None

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events until session.end, which is the last. Raises SessionFailed if it never comes."""
        while True:
            while self._unread:
                self._room.set()
                yield self._unread.popleft()
            if self._over:
                break
            self._news.clear()
            await self._news.wait()
        if self._failure:
            raise self._failure
        await self._running  # raises what it raised, if that was not foreseen

    # One connection after the other.

    async def _run(self) -> None:
        try:
            while True:
                await self._listen(self._connection)
                if self.ended:
                    return
                if not self._may_resume():
                    raise self._closed()
                await self._go_on()
        except SessionFailed as failure:
            self._failure = failure
        except asyncio.CancelledError:
            self._failure = self._closed()
            raise
        finally:
            self._over = True
            self._news.set()
            self._room.set()

    async def leave(self) -> None:
        """To be called last: nothing is under way any more."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self._connection.close()

    def _closed(self) -> SessionFailed:
        return SessionFailed(self._connection.close_code or _ABNORMAL, self._error)

    async def _listen(self, connection: ClientConnection) -> None:
        """Pass on what the server says until it closes, or has said everything."""
        works = (self._say(connection), self._watch(connection))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            async for frame in connection:
                self._heard_at = asyncio.get_running_loop().time()
                for event in self._hear(json.loads(frame)):
                    await self._tell(event)
                if self.ended:
                    return
        except ConnectionClosed:
            pass
        finally:
            self._live = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _say(self, connection: ClientConnection) -> None:
        """Send what is held, then let the application's frames go straight out."""
        with contextlib.suppress(ConnectionClosed):
            while await self._send_held(connection):
                pass
            self._live = connection

    async def _send_held(self, connection: ClientConnection) -> bool:
        frame = self._sent.take()
        if frame is not None:
            await connection.send(frame)
        return frame is not None

    async def _watch(self, connection: ClientConnection) -> None:
        """Drop a connection whose other side says nothing, not even pong."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionClosed):
            while True:
                try:
                    async with asyncio.timeout(SILENT_S):
                        await (await connection.ping())
                    await asyncio.sleep(PING_EVERY_S)
                except TimeoutError:
                    # The answer may wait behind audio that the server does not read yet; then its
                    # acks show that it lives. And what we do not read cannot answer.
                    quiet = loop.time() - self._heard_at
                    if quiet > self._patience() and len(self._unread) < UNREAD:
                        return connection.transport.abort()

    @property
    def _begun(self) -> bool:
        return None not in self._ids

    def _patience(self) -> float:
        if not self._begun:
            return BEGIN_S
        return SILENT_S if self._resumes or self._acks else UNACKNOWLEDGED_S

    async def _tell(self, event: Event) -> None:
        while len(self._unread) >= UNREAD:
            self._room.clear()
            await self._room.wait()
        self._unread.append(event)
        self._news.set()

    def _hear(self, event: Event) -> list[Event]:
        """What the application is told of it."""
        channel: int = event.get("channel", 0)
        match event["type"]:
            case "session.begin":
                if self._ids[channel] and event.get("resumed_from") == self._ids[channel]:
                    return []  # the other channel's was told, as connection.resumed
                self._ids[channel] = event.get("session_id", "")
                self._sent.begin(event.get("config", {}), event.get("resume_offset_ms", 0.0))
            case "session.end":
                if channel in self._ended:
                    return []
                self._ended.add(channel)
                if len(self._ended) == len(self._ids):
                    self.ended = event
            case "session.terminated":
                self._terminated = event
                if self._may_resume():
                    return []
            case "ack":
                self._acknowledged(event, channel)
                if not self._acks:
                    return []
            case "pong":
                self._sent.ponged()
            case "error" | "config.updated":
                if event["type"] == "error":
                    self._error = event
                if answers_config(event) and not self._sent.answered(channel):
                    return []
            case _:
                pass
        return self._of(channel, self._heard[channel].hear(event))

    def _of(self, channel: int, events: list[Event]) -> list[Event]:
        """What was heard of a channel; where there are several, what was made up says its own."""
        if len(self._ids) == 1:
            return events
        return [
            {"channel": channel} | event if event["type"] in _MADE_UP else event for event in events
        ]

    def _acknowledged(self, ack: Event, channel: int) -> None:
        self._sent.acknowledged(ack, channel)
        if ack["processed"] > self._processed:
            self._processed, self._trouble = ack["processed"], None
        self._room.set()

    # After a connection broke.

    def _may_resume(self) -> bool:
        """Whether the server keeps the session for us, or never began one and did not say why."""
        if not self._resumes or "" in self._ids:
            return False
        if self._terminated:
            return bool(self._terminated.get("recoverable"))
        if self._error and not (self._begun and self._error.get("recoverable")):
            return False
        return (self._connection.close_code or _ABNORMAL) in _KEPT_CODES

    async def _go_on(self) -> None:
        """Another connection of the same session; if it had not begun, the first of another.
        Raises SessionFailed."""
        loop = asyncio.get_running_loop()
        lost, code = loop.time(), self._connection.close_code or _ABNORMAL
        if self._trouble is None or lost - self._connected_at > STEADY_S:
            self._trouble, self._wait = lost, BACKOFF_FIRST_S
        reason = self._terminated["reason"] if self._terminated else ""
        await self._tell({"type": "connection.lost", "code": code, "reason": reason})
        self._connection.transport.abort()
        self._terminated = None
        attempts, why, retry_after = 0, reason or f"it closed with code {code}", 0.0
        while True:
            # Jittered: the clients of a gateway that died do not come back all at once.
            pause = max(retry_after, self._wait / 2) * random.uniform(1.0, 2.0)
            if loop.time() + pause > self._trouble + RESUME_S:
                sentence = f"the connection broke, and no other could be had: {why}"
                raise SessionFailed(code, self._error, sentence)
            await asyncio.sleep(pause)
            self._wait, retry_after = min(2 * self._wait, BACKOFF_LAST_S), 0.0
            attempts += 1
            self._gateways.turn()
            try:
                begin = await self._begin_again()
            except (*NO_ANSWER, ConnectionClosed) as error:
                why = str(error) or type(error).__name__
                continue
            if begin["type"] != "session.begin":
                why = begin.get("message", begin["type"])
                if attempts % len(self._gateways) == 0:  # it may be one that drains
                    retry_after = float(begin.get("retry_after", 0))
                continue
            after_s = round(loop.time() - lost, 3)
            offset_ms = begin.get("resume_offset_ms", 0.0)
            told = {"type": "connection.resumed", "session_id": ",".join(filter(None, self._ids))}
            told |= {"resume_offset_ms": offset_ms, "attempts": attempts, "after_seconds": after_s}
            return await self._tell(told)

    async def _begin_again(self) -> Event:
        """session.begin, or an error that does not last. Raises SessionFailed, and what opening
        and closing a connection raises."""
        query, began = dict[str, str](), self._begun
        if not began:
            self._ids = [None for _ in self._ids]
        if began:
            query["resume_session_id"] = ",".join(filter(None, self._ids))
            if any(heard.last_segment for heard in self._heard):
                query["last_segment_id"] = ",".join(heard.last_segment for heard in self._heard)
        connection = await self._gateways.open(**query)
        try:
            event = await first_word(connection)
            channel: int = event.get("channel", 0)
            known = self._ids[channel]
            is_ours = not began or event.get("resumed_from") == known
            if event["type"] == "session.begin" and is_ours:
                offset_ms = event.get("resume_offset_ms", 0.0)
                for news in self._resumed(offset_ms) if began else self._hear(event):
                    await self._tell(news)
                self._sent.go_back(offset_ms)
                self._connection = connection
                self._connected_at = self._heard_at = asyncio.get_running_loop().time()
            elif event["type"] == "error" and not event.get("recoverable"):
                await connection.wait_closed()
                code = connection.close_code or _ABNORMAL
                raise SessionFailed(code, event, f"{_CANNOT}: {event['message']}")
            elif event["type"] == "session.begin":
                raise SessionFailed(_ABNORMAL, None, f"{_CANNOT}: the server began another")
            return event
        except Gone as gone:
            raise SessionFailed(_ABNORMAL, None, f"{_CANNOT}: {gone}") from None
        finally:
            if connection is not self._connection:
                connection.transport.abort()

    def _resumed(self, offset_ms: float) -> list[Event]:
        return [
            news
            for channel, heard in enumerate(self._heard)
            for news in self._of(channel, heard.resumed(offset_ms))
        ]


def _written(value: Any) -> Any:
    """As the query has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, cast(Sequence[Any], value)))
    return value


@asynccontextmanager
async def connect(
    url: str | Sequence[str],
    *,
    resume: bool = True,
    api_key: Credential | None = None,
    **parameters: Any,
) -> AsyncGenerator[Session]:
    """A session with the server at `url` (ws:// or wss://, a path is optional), or with any of
    several gateways.

    api_key: a key or token; or a function that is called for a token before each connection, so
    that one which is replaced has a new one. Without it $DALSTON_API_KEY is shown, if there is one.
    resume: a connection that breaks in mid-session is replaced, see docs/clients.md.
    parameters: those of the stream, such as language, model, word_timestamps, sample_rate; lists
    for keywords and languages. With channels=2 and multichannel=True each event says its channel,
    and the last is the later session.end of the two.
    Raises OSError when nobody listens there.
    """
    acks = bool(parameters.get("ack"))
    if resume:
        parameters["ack"] = True
    written = {name: _written(value) for name, value in parameters.items()}
    key = os.environ.get("DALSTON_API_KEY", "") if api_key is None else api_key
    gateways = Gateways([url] if isinstance(url, str) else url, written, key)
    channels = int(parameters.get("channels", 1)) if written.get("multichannel") == "true" else 1
    last = str(parameters.get("last_segment_id", ""))
    session = Session(
        gateways,
        await gateways.open_first(),
        Sent(keep=resume, channels=channels),
        [Heard(segment) for segment in last.split(",")]
        if last
        else [Heard() for _ in range(channels)],
        resume=resume,
        acks=acks,
    )
    try:
        yield session
    finally:
        await session.leave()
