"""
`dalston stream`: a file, the microphone or standard input to a server, text back.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalston import client
from dalston.cli.display import Display

CHUNK_S = 0.1


class SourceError(Exception):
    """Audio, or a key, that cannot be had; says why."""


def key_in(path: Path) -> str:
    """The key in a file's first line. Raises SourceError."""
    try:
        key = path.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the API key: {error}") from None
    if not key:
        raise SourceError(f"the API key: the first line of {path} is empty")
    return key


@dataclass(frozen=True)
class Format:
    """Of raw audio: as the server's parameters name it."""

    encoding: str
    sample_rate: int
    channels: int

    @property
    def chunk_bytes(self) -> int:
        width = {"pcm_f32le": 4, "pcm_s16le": 2}.get(self.encoding, 1)
        return int(self.sample_rate * CHUNK_S) * width * self.channels


async def file_audio(path: Path, fast: bool) -> tuple[Format, AsyncIterator[bytes]]:
    """A file's own format as 16-bit PCM, and its audio at the pace it was spoken at."""
    import soundfile

    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise SourceError(f"{path}: {error}") from None
    if not 8_000 <= file.samplerate <= 48_000 or file.channels > 2:
        raise SourceError(
            f"{path} has {file.samplerate} Hz and {file.channels} channels; "
            "8000 to 48000 Hz and at most two channels are taken"
        )
    form = Format("pcm_s16le", file.samplerate, file.channels)

    async def chunks() -> AsyncIterator[bytes]:
        began, sent = time.monotonic(), 0
        with file:
            while len(block := file.read(int(file.samplerate * CHUNK_S), dtype="int16")):
                yield block.tobytes()
                sent += len(block)
                if not fast:
                    await asyncio.sleep(began + sent / file.samplerate - time.monotonic())

    return form, chunks()


async def stdin_audio(form: Format) -> AsyncIterator[bytes]:
    """Standard input as it comes."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(reader)
    await loop.connect_read_pipe(lambda: protocol, sys.stdin.buffer)
    while chunk := await reader.read(form.chunk_bytes):
        yield chunk


async def microphone() -> tuple[Format, AsyncIterator[bytes]]:
    """The default input device at 16 kHz, until Ctrl-C."""
    try:
        import sounddevice
    except (ModuleNotFoundError, OSError) as error:
        raise SourceError(
            f"{error}: the microphone needs pip install 'dalston[microphone]' and PortAudio "
            "(apt-get install libportaudio2)"
        ) from None
    form = Format("pcm_s16le", 16_000, 1)
    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[bytes] = asyncio.Queue(100)  # 10 s: behind that the oldest is lost

    def keep(block: bytes) -> None:
        if blocks.full():
            blocks.get_nowait()
        blocks.put_nowait(block)

    def receive(data: Any, *_: Any) -> None:
        loop.call_soon_threadsafe(keep, bytes(data))

    try:
        device = sounddevice.RawInputStream(
            samplerate=form.sample_rate,
            channels=1,
            dtype="int16",
            blocksize=form.chunk_bytes // 2,
            callback=receive,
        )
    except sounddevice.PortAudioError as error:
        raise SourceError(f"no microphone: {error}") from None

    async def chunks() -> AsyncIterator[bytes]:
        with device:
            while True:
                yield await blocks.get()

    return form, chunks()


async def _stream(
    source: str, urls: list[str], parameters: dict[str, Any], raw: Format, as_json: bool, fast: bool
) -> None:
    match source:
        case "-":
            form, chunks = raw, stdin_audio(raw)
        case "mic":
            form, chunks = await microphone()
        case _:
            form, chunks = await file_audio(Path(source), fast)
    parameters = parameters | {
        "encoding": form.encoding,
        "sample_rate": form.sample_rate,
        "channels": form.channels,
    }
    with contextlib.ExitStack() as stack:
        display = None if as_json else stack.enter_context(Display())
        async with client.connect(urls, **parameters) as session:

            async def send() -> None:
                async for chunk in chunks:
                    await session.send(chunk)
                await session.end()

            sending = asyncio.create_task(send())
            try:
                async for event in session:
                    if display:
                        display.show(event)
                    else:
                        print(json.dumps(event, ensure_ascii=False), flush=True)
            except asyncio.CancelledError:  # Ctrl-C: what was said is still finished
                sending.cancel()
                await session.end()
                async for event in session:
                    if display:
                        display.show(event)
                    else:
                        print(json.dumps(event, ensure_ascii=False), flush=True)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)


def main(
    source: str, urls: list[str], parameters: dict[str, Any], raw: Format, as_json: bool, fast: bool
) -> int:
    """Stream to the end of the source; the exit status."""
    try:
        asyncio.run(_stream(source, urls, parameters, raw, as_json, fast))
    except client.SessionFailed as failure:
        if as_json is False or failure.error is None:
            print(failure, file=sys.stderr)
        return 1
    except SourceError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"no server at {' or '.join(urls)}: {error}", file=sys.stderr)
        return 1
    return 0
