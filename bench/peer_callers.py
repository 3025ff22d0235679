"""
Callers of one of the compared servers: N sessions paced in real time, in a process of their own.

    python bench/peer_callers.py --server RealtimeSTT --url ws://127.0.0.1:8000 --streams 4

Each reads a script aloud as in callers.py, then stays silent until every sentence has its final,
or SILENCE_S: no server loses its last words because the audio stopped. What a server shows is read
as text of a stretch of audio, in the server's own times; in doubt, to the server's advantage.

Prints one JSON object: a list of calls, and whether this process kept its own time.
"""

import argparse
import asyncio
import json
import random
import re
import struct
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from callers import BEGIN_WITHIN_S, CHUNK_S, RATE, SCRIPTS, Script, Sentence, print_calls, scripts
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from dalston import client

SILENCE_S = 6.0
LAST_WORDS_S = 2.0  # after the end of audio has been told
READY_WITHIN_S = 30.0
# A final is that of a sentence if it reaches so near to its end: word times are no better.
REACH_S = 0.7
EARLY_S = 0.3  # a final of the whole sentence may come before the last sound has faded

Message = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """Text that a server showed; of which seconds of the audio, and whether for good."""

    text: str
    start: float
    end: float
    final: bool


@dataclass
class Call:
    """What one caller noticed; times are seconds."""

    script: int
    sentences: int
    first_text: list[float] = field(default_factory=list[float])  # from the true onset
    after_speech: list[float] = field(default_factory=list[float])  # true end to final
    unseen: int = 0  # sentences of which nothing was shown
    lost: int = 0  # sentences without a final
    text: str = ""  # of the finals
    words: str = ""  # the same without case and punctuation
    failure: str = ""


class Refused(Exception):
    """The server does not take this caller."""


class Server(Protocol):
    """How one of the servers is spoken to."""

    async def open(self, socket: ClientConnection) -> None:
        """Until it takes audio. Raises Refused."""
        ...

    def audio(self, pcm: bytes) -> bytes: ...

    def end(self) -> str | bytes: ...

    def read(self, message: Message, now: float) -> list[Heard]:
        """now: seconds since the audio began."""
        ...


async def _messages(socket: ClientConnection) -> AsyncIterator[Message]:
    async for frame in socket:
        yield json.loads(frame)


class Dalston:
    path = client.PATH + "?language=en"

    async def open(self, socket: ClientConnection) -> None:
        async for message in _messages(socket):
            if message["type"] == "error":
                raise Refused(message["message"])
            if message["type"] == "session.begin":
                return

    def audio(self, pcm: bytes) -> bytes:
        return pcm

    def end(self) -> str:
        return '{"type": "end"}'

    def read(self, message: Message, now: float) -> list[Heard]:
        if message["type"] not in ("transcript.partial", "transcript.final"):
            return []
        final = message["type"] == "transcript.final"
        return [Heard(message["text"], message["start"], message["end"], final)]


class RealtimeSTT:
    """Its times are of the clock on the wall: when it noticed speech, when it decided that it is
    over. Of each such recording there is a final, in their order; what finals say of their own
    segment is wrong as soon as the next recording has begun."""

    path = "/ws/transcribe"
    NOTICED_S = 0.3  # of speech, before it says so

    def __init__(self) -> None:
        self._recordings = list[tuple[float, float]]()  # start, end
        self._finals = 0

    async def open(self, socket: ClientConnection) -> None:
        async for message in _messages(socket):
            if message["type"] == "error":
                raise Refused(message["message"])
            if message["type"] == "ready":
                break
        await socket.send('{"type": "start"}')

    def audio(self, pcm: bytes) -> bytes:
        about = {"sampleRate": RATE, "channels": 1, "format": "pcm_s16le", "frames": len(pcm) // 2}
        metadata = json.dumps(about).encode()
        return struct.pack("<I", len(metadata)) + metadata + pcm

    def end(self) -> str:
        return '{"type": "stop"}'

    def read(self, message: Message, now: float) -> list[Heard]:
        match message["type"], message.get("event"):
            case "timeline", "recording_started":
                self._recordings.append((now - self.NOTICED_S, now))
            case "timeline", "recording_ended":
                self._recordings[-1] = self._recordings[-1][0], now
            case "realtime", _ if self._recordings:
                return [Heard(message["text"], self._recordings[-1][0], now, False)]
            case "final", _ if self._finals < len(self._recordings):
                self._finals += 1
                return [Heard(message["text"], *self._recordings[self._finals - 1], True)]
            case _:
                pass
        return []


class WhisperLive:
    path = ""

    def __init__(self) -> None:
        self._completed = set[tuple[str, str]]()

    async def open(self, socket: ClientConnection) -> None:
        options = {
            "uid": str(random.getrandbits(64)),
            "language": "en",
            "task": "transcribe",
            "model": "whichever is served",
            "use_vad": True,
            "audio_format": "int16",
            # A segment is completed when it came out the same so often and once more; of 10, the
            # default, finals come seconds late.
            "same_output_threshold": 1,
        }
        await socket.send(json.dumps(options))
        async for message in _messages(socket):
            if message.get("message") == "SERVER_READY":
                return
            if "status" in message:
                raise Refused(f"{message['status']}: {message.get('message')}")

    def audio(self, pcm: bytes) -> bytes:
        return pcm

    def end(self) -> bytes:
        return b"END_OF_AUDIO"

    def read(self, message: Message, now: float) -> list[Heard]:
        heard = list[Heard]()
        for segment in message.get("segments", ()):
            # Every message repeats what was completed before.
            if (segment["start"], segment["end"]) in self._completed:
                continue
            if segment["completed"]:
                self._completed.add((segment["start"], segment["end"]))
            times = float(segment["start"]), float(segment["end"])
            heard.append(Heard(segment["text"], *times, segment["completed"]))
        return heard


class WhisperLiveKit:
    """Every message holds all lines so far. A word in a line stays as it is."""

    path = "/asr"

    def __init__(self) -> None:
        self._words = 0  # in lines, so far
        self._end = 0.0  # of the last of them
        self._buffer = ""

    async def open(self, socket: ClientConnection) -> None:
        async for message in _messages(socket):
            if message.get("type") == "config":
                return

    def audio(self, pcm: bytes) -> bytes:
        return pcm

    def end(self) -> bytes:
        return b""

    def read(self, message: Message, now: float) -> list[Heard]:
        heard = list[Heard]()
        lines = [line for line in message.get("lines", ()) if line["text"]]
        words = " ".join(line["text"] for line in lines).split()
        if len(words) > self._words:
            end = _seconds(lines[-1]["end"])
            heard.append(Heard(" ".join(words[self._words :]), self._end, end, True))
            self._words, self._end = len(words), end
        buffer = message.get("buffer_transcription", "").strip()
        if buffer and buffer != self._buffer:
            heard.append(Heard(buffer, self._end, now, False))
        self._buffer = buffer
        return heard


def _seconds(time_of_day: str) -> float:
    hours, minutes, seconds = time_of_day.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


SERVERS = {
    server.__name__: server for server in (Dalston, RealtimeSTT, WhisperLive, WhisperLiveKit)
}


class Listener:
    """Notes what the texts of one call mean."""

    def __init__(self, script: Script):
        self._sentences = script.sentences
        self._heard = list[tuple[float, Heard]]()

    def hear(self, now: float, heard: list[Heard]) -> None:
        self._heard += [(now, text) for text in heard if text.text.strip()]

    def complete(self) -> bool:
        return all(self._final(sentence) is not None for sentence in self._sentences)

    def _first(self, sentence: Sentence) -> float | None:
        """When the first text was shown that has some of the sentence."""
        shown = [
            now
            for now, text in self._heard
            if min(sentence.end, text.end) - max(sentence.start, text.start) > 0.1
            and now > sentence.start
        ]
        return min(shown, default=None)

    def _final(self, sentence: Sentence) -> float | None:
        """When the first final came that has the end of the sentence, and came after it. Of two
        that make up the sentence that is the second; of two sentences in one it is the same."""
        told = [
            now
            for now, text in self._heard
            if text.final
            and text.start < sentence.end - 0.1
            and text.end > sentence.end - REACH_S
            and now > sentence.end - EARLY_S
        ]
        return min(told, default=None)

    def count(self, call: Call) -> None:
        for sentence in self._sentences:
            first, final = self._first(sentence), self._final(sentence)
            if first is None:
                call.unseen += 1
            else:
                call.first_text.append(first - sentence.start)
            if final is None:
                call.lost += 1
            else:
                call.after_speech.append(max(0.0, final - sentence.end))
        finals = " ".join(text.text for _, text in self._heard if text.final)
        # RealtimeSTT ends each with a full stop and begins it with a capital.
        call.text = finals
        call.words = " ".join(re.findall(r"\w+", finals.lower()))


async def call(name: str, url: str, number: int, script: Script, late: list[float]) -> Call:
    """One session, from its first frame to its last."""
    seen, server = Call(number, len(script.sentences)), SERVERS[name]()
    listener = Listener(script)
    try:
        address = url + server.path
        # No pings: a server that has no time for them is judged by what it says.
        async with connect(address, compression=None, max_size=None, ping_interval=None) as socket:
            async with asyncio.timeout(READY_WITHIN_S):
                await server.open(socket)
            began = time.perf_counter()
            listening = asyncio.create_task(_listen(server, socket, listener, began))
            try:
                await _send(server, socket, script.audio, listener, began, late)
                if not listener.complete():
                    await asyncio.wait([listening], timeout=LAST_WORDS_S)
            finally:
                listening.cancel()
                (ended,) = await asyncio.gather(listening, return_exceptions=True)
            if isinstance(ended, Exception) and not isinstance(ended, WebSocketException):
                raise ended
    except (Refused, TimeoutError, OSError, WebSocketException) as error:
        seen.failure = str(error) or type(error).__name__
    listener.count(seen)
    return seen


async def _listen(
    server: Server, socket: ClientConnection, listener: Listener, began: float
) -> None:
    async for message in _messages(socket):
        now = time.perf_counter() - began
        listener.hear(now, server.read(message, now))


async def _send(
    server: Server,
    socket: ClientConnection,
    audio: bytes,
    listener: Listener,
    began: float,
    late: list[float],
) -> None:
    step = 2 * int(RATE * CHUNK_S)
    chunks = [audio[at : at + step] for at in range(0, len(audio), step)]
    spoken = len(chunks)
    chunks += [bytes(step)] * round(SILENCE_S / CHUNK_S)
    for index, chunk in enumerate(chunks, 1):
        if index > spoken and listener.complete():
            break
        # A server that does not read makes us wait in send(): that is not our being late.
        due = max(began + index * CHUNK_S, time.perf_counter())
        await asyncio.sleep(due - time.perf_counter())
        late.append(time.perf_counter() - due)
        await socket.send(server.audio(chunk))
    await socket.send(server.end())


async def many(
    name: str, url: str, streams: int, every: Sequence[Script]
) -> tuple[list[Call], list[float]]:
    """So many callers at once; each makes one call."""
    late = list[float]()

    async def one(index: int) -> Call:
        number = index % SCRIPTS
        if streams > 1:
            await asyncio.sleep(random.Random(index).uniform(0, BEGIN_WITHIN_S))
        return await call(name, url, number, every[number], late)

    return await asyncio.gather(*map(one, range(streams))), late


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--server", choices=SERVERS, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each script (30)")
    parser.add_argument("--corpus", type=Path, help="whose utterances are said")
    args = parser.parse_args()
    every = scripts(args.seconds, args.corpus)
    began = time.perf_counter()
    calls, late = asyncio.run(many(args.server, args.url, args.streams, every))
    print_calls(calls, late, began)


if __name__ == "__main__":
    main()
