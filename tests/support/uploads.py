"""
Recordings in containers, requests that upload them, and a worker that hears how long they are.
"""

import asyncio
import http.client
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from websockets.asyncio.server import ServerConnection

from dalston.orchestrator.protocol.messages import SessionEnd, Stats, serialize
from support.registered import BEGIN, final, snapshot

# FFmpeg's name of the container and of the codec, and the rate at which it is recorded.
CONTAINERS = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "flac": ("flac", "flac", 48_000),
    "m4a": ("ipod", "aac", 44_100),  # what tells where its audio is stands at its end
    "ogg": ("ogg", "libopus", 48_000),
    "webm": ("webm", "libopus", 48_000),
}


def tone(seconds: float, rate: int) -> npt.NDArray[np.int16]:
    time = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * 440 * time) * 8000).astype(np.int16)


def contained(
    audio: npt.NDArray[np.int16],
    rate: int,
    container: str = "wav",
    codec: str = "pcm_s16le",
    layout: str = "mono",
    options: dict[str, str] | None = None,
) -> bytes:
    """Audio of one channel, said in all of them."""
    written = io.BytesIO()
    with av.open(written, "w", format=container, options=options or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate, layout=layout)
        channels = stream.layout.nb_channels
        fifo = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(
            np.repeat(audio, channels)[None], format="s16", layout=layout
        )
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        for piece in [*fifo.resample(frame), *fifo.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return written.getvalue()


def recorded(kind: str, seconds: float = 2.0) -> bytes:
    """A tone in one of CONTAINERS."""
    container, codec, rate = CONTAINERS[kind]
    return contained(tone(seconds, rate), rate, container, codec)


def film() -> bytes:
    """Without a sound."""
    written = io.BytesIO()
    with av.open(written, "w", format="matroska") as output:
        stream: Any = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return written.getvalue()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Of a stream."""
        lines = self.body.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


BOUNDARY = "a-line-between"


def form(fields: Sequence[tuple[str, str]], file: bytes | None) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    if file is not None:
        about = 'Content-Disposition: form-data; name="file"; filename="a.bin"'
        parts.append(f"--{BOUNDARY}\r\n{about}\r\n\r\n".encode() + file + b"\r\n")
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


async def post(
    url: str, path: str, body: bytes, content_type: str = "", method: str = "POST", **headers: str
) -> Answer:
    """url: host and port."""
    kind = content_type or f"multipart/form-data; boundary={BOUNDARY}"
    given = {"Content-Type": kind, **{name.replace("_", "-"): v for name, v in headers.items()}}

    def ask() -> Answer:
        connection = http.client.HTTPConnection(url, timeout=100)
        try:
            connection.request(method, path, body, given)
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


def end(audio_s: float, reason: Any = "client_end") -> str:
    return serialize(
        SessionEnd(
            session_id="s",
            reason=reason,
            total_duration=audio_s,
            total_audio_seconds=audio_s,
            total_speech_duration=audio_s,
            wall_seconds=1.0,
            transcript="",
            segments=[],
            stats=Stats(),
        )
    )


async def scribe(connection: ServerConnection) -> None:
    """Tells a final for each whole second that it hears, and at the end how much it was."""
    await connection.send(BEGIN)
    heard = told = 0
    async for frame in connection:
        if isinstance(frame, bytes):
            heard += len(frame)
            for number in range(told, heard // 32_000):
                await connection.send(final(number))
                await connection.send(snapshot(16_000 * (number + 1), number + 1))
            told = heard // 32_000
        elif json.loads(frame)["type"] == "end":
            await connection.send(end(heard / 32_000))
            await connection.close(1000)
