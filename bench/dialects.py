"""
Callers who speak the protocol of another service, as its clients do, and their like who speak ours.

    python bench/dialects.py --url ws://127.0.0.1:8000 --protocol openai --streams 20 --seconds 30
    python bench/dialects.py --url ws://127.0.0.1:8000 --protocol openai --native ...

What they say is what callers.py says. --native: the same number of callers ask for the same in our
own protocol, so that the difference is what the other protocol costs. What they send is made before
the first of them calls.

Prints one JSON object: the finals that were told, how late the callers were, failures.
"""

import argparse
import asyncio
import base64
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from urllib.parse import parse_qsl, urlencode

import msgspec
import numpy as np
import soxr
from callers import BEGIN_WITHIN_S, CHUNK_S, SCRIPTS, scripts
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from dalston.gateway.protocols import PROTOCOLS
from dalston.gateway.protocols.protocol import Opening
from dalston.orchestrator.protocol.messages import SessionConfig

NATIVE = "/v1/audio/transcriptions/stream"
LAST_WORDS_S = 2.0  # after the last frame: not every protocol has an end

Frame = str | bytes


@dataclass(frozen=True)
class Dialect:
    """How one protocol is spoken."""

    path: str
    query: str
    final: str  # stands in every frame that tells one
    rate: int = 16_000
    opening: tuple[str, ...] = ()
    wrap: Callable[[bytes], Frame] = bytes
    ending: tuple[str, ...] = ()


def _base64(audio: bytes) -> str:
    return base64.b64encode(audio).decode()


def _append(audio: bytes) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": _base64(audio)})


def _chunk(audio: bytes) -> str:
    about = {"commit": False, "sample_rate": 16_000, "previous_text": None}
    chunk = {"message_type": "input_audio_chunk", "audio_base_64": _base64(audio), **about}
    return json.dumps(chunk)


_UPDATE = {
    "type": "session.update",
    "session": {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24_000},
                "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                "turn_detection": {"type": "server_vad"},
            }
        },
    },
}
DIALECTS = {
    "deepgram": Dialect(
        "/v1/listen",
        "model=nova-3&encoding=linear16&sample_rate=16000&interim_results=true&punctuate=true",
        '"is_final":true',
        ending=('{"type":"CloseStream"}',),
    ),
    "elevenlabs": Dialect(
        "/v1/speech-to-text/realtime",
        "model_id=scribe_v2_realtime&audio_format=pcm_16000&commit_strategy=vad&language_code=en",
        '"committed_transcript"',
        wrap=_chunk,
    ),
    "flux": Dialect(
        "/v2/listen",
        "model=flux-general-en&encoding=linear16&sample_rate=16000",
        '"EndOfTurn"',
        ending=('{"type":"CloseStream"}',),
    ),
    "openai": Dialect(
        "/v1/realtime",
        "intent=transcription",
        "input_audio_transcription.completed",
        rate=24_000,
        opening=(json.dumps(_UPDATE),),
        wrap=_append,
    ),
    "recordings": Dialect(
        "/ws/transcribe",
        "",
        '"transcription"',
        opening=('{"type":"start_recording","config":{"sample_rate":16000,"language":"en"}}',),
        ending=('{"type":"stop_recording"}',),
    ),
    "vosk": Dialect(
        "/vosk",
        "language=en",
        '"text"',
        opening=('{"config":{"sample_rate":16000}}',),
        ending=('{"eof":1}',),
    ),
}


def natively(dialect: Dialect) -> Dialect:
    """What asks for the same session in our own protocol."""
    protocol = PROTOCOLS[dialect.path](Opening(parse_qsl(dialect.query), {}))
    for frame in (*dialect.opening, dialect.wrap(bytes(dialect.rate))):
        protocol.receive(frame)
    asked = protocol.asked()
    assert asked
    usual = msgspec.structs.asdict(SessionConfig())
    wanted = msgspec.structs.asdict(asked.config).items()
    query = {name: _text(value) for name, value in wanted if value != usual[name]}
    ending = ('{"type":"end"}',)
    final = '"transcript.final"'
    return Dialect(NATIVE, urlencode(query), final, dialect.rate, ending=ending)


def _text(value: tuple[str, ...] | str | float) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value).lower()


def frames(dialect: Dialect, seconds: float) -> list[list[Frame]]:
    """What is sent for each of the scripts."""
    made = list[list[Frame]]()
    step = int(dialect.rate * CHUNK_S)
    for script in scripts(seconds):
        samples = np.frombuffer(script.audio, "<i2")
        if dialect.rate != 16_000:
            samples = soxr.resample(samples, 16_000, dialect.rate)
        made.append(
            [dialect.wrap(samples[at : at + step].tobytes()) for at in range(0, len(samples), step)]
        )
    return made


@dataclass
class Noticed:
    """By all callers together."""

    finals: int = 0
    failures: int = 0


async def call(
    url: str, dialect: Dialect, said: list[Frame], seen: Noticed, late: list[float]
) -> None:
    address = f"{url}{dialect.path}?{dialect.query}"
    try:
        async with connect(address, compression=None, max_size=None) as socket:
            for text in dialect.opening:
                await socket.send(text)
            listening = asyncio.create_task(_listen(socket, dialect, seen))
            began = time.perf_counter()
            for index, frame in enumerate(said, 1):
                # A microphone hands over a chunk when its last sample was heard.
                due = began + index * CHUNK_S
                await asyncio.sleep(due - time.perf_counter())
                late.append(time.perf_counter() - due)
                await socket.send(frame)
            for text in dialect.ending:
                await socket.send(text)
            await asyncio.sleep(LAST_WORDS_S)
            listening.cancel()
    except (WebSocketException, OSError):
        seen.failures += 1


async def _listen(socket: ClientConnection, dialect: Dialect, seen: Noticed) -> None:
    try:
        async for frame in socket:
            seen.finals += dialect.final in str(frame)
    except ConnectionClosed:
        pass


async def many(url: str, dialect: Dialect, streams: int, seconds: float) -> dict[str, object]:
    """So many callers at once, who begin at moments of their own."""
    every, seen, late = frames(dialect, seconds), Noticed(), list[float]()

    async def one(index: int) -> None:
        await asyncio.sleep(random.Random(index).uniform(0, BEGIN_WITHIN_S))
        await call(url, dialect, every[index % SCRIPTS], seen, late)

    began = time.perf_counter()
    await asyncio.gather(*map(one, range(streams)))
    elapsed_s = time.perf_counter() - began
    late.sort()
    late_p95_s = late[int(0.95 * len(late))] if late else 0.0
    return {**asdict(seen), "late_p95_s": late_p95_s, "elapsed_s": elapsed_s}


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--protocol", choices=DIALECTS, required=True)
    parser.add_argument("--native", action="store_true", help="the same in our own protocol")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each call (30)")
    args = parser.parse_args()
    dialect = DIALECTS[args.protocol]
    spoken = natively(dialect) if args.native else dialect
    print(json.dumps(asyncio.run(many(args.url, spoken, args.streams, args.seconds))))


if __name__ == "__main__":
    main()
