"""
How fast the final comes to a client that ends turns itself, as the public benchmarks of speech
services measure it: the client hears 200 ms of silence, says `flush`, and waits.

    python bench/flush.py CORPUS --checkpoint fast=FOLDER     a stack of its own
    python bench/flush.py CORPUS --url ws://HOST:8000         a server that runs

CORPUS is a folder with manifest.json: a list of {"file", "kind", "language", "seconds"}, of which
the English utterances are read, 16 kHz mono. Speech ends where Silero's own iterator says so
(orchestrator/transcription/endpointer.py has its rules); that is where the clock starts. Callers
speak in real time, in 20 ms pieces, each utterance after the other in one session.

Prints a table, and one JSON object last.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
import numpy.typing as npt
import soundfile

from dalston import client
from dalston.cli import up
from dalston.cli.models import Choice
from dalston.orchestrator.transcription.endpointer import Endpointer, Thresholds
from dalston.triton.contract import SAMPLE_RATE, VAD_FRAME
from dalston.triton.silero import Chunk, Silero

PIECE = SAMPLE_RATE // 50  # samples: 20 ms
SILENCE = SAMPLE_RATE // 5  # that the client waits for before it says flush
BETWEEN = SAMPLE_RATE // 2  # silence before the next utterance
LONGEST_S = 15.0  # of an utterance
# Only flush ends utterances, so nothing that is measured was decided by the server.
PARAMETERS = {"language": "en", "endpointing": "manual"}


@dataclass(frozen=True)
class Clip:
    name: str
    audio: bytes  # up to SILENCE behind the end of speech
    end: int  # of speech, samples


@dataclass(frozen=True)
class Wait:
    """seconds from the end of speech to its final, and from the flush."""

    clip: str
    after_speech: float
    after_flush: float


def clips(corpus: Path, silero: Path) -> list[Clip]:
    vad, found = Silero(silero), list[Clip]()
    for entry in json.loads((corpus / "manifest.json").read_text("utf-8")):
        if (entry["kind"], entry["language"]) != ("utterance", "en"):
            continue
        if entry["seconds"] > LONGEST_S:
            continue
        audio, rate = soundfile.read(corpus / entry["file"], dtype="int16")
        assert rate == SAMPLE_RATE, entry["file"]
        audio = np.concatenate([audio, np.zeros(SAMPLE_RATE, np.int16)])
        if end := speech_end(vad, audio):
            found.append(Clip(entry["file"], audio[: end + SILENCE].tobytes(), end))
    return found


def speech_end(vad: Silero, audio: npt.NDArray[np.int16]) -> int | None:
    """Where the silence begins that nothing follows; None: there was no speech."""
    (probabilities,) = vad.probabilities([Chunk("clip", audio, start=True, end=True)], 0.0)
    assert isinstance(probabilities, np.ndarray)
    rules = Thresholds(threshold=0.5, min_speech=0, min_silence=sys.maxsize, manual=True)
    endpointer = Endpointer()
    for number, probability in enumerate(probabilities):
        start = number * VAD_FRAME
        endpointer.receive(float(probability), start, start + VAD_FRAME, rules)
    return endpointer.silence


async def caller(url: str, turn: Sequence[Clip], seconds: float) -> list[Wait]:
    """Speaks the clips of one session until so much time is over."""
    waits, finals = list[Wait](), asyncio.Queue[float]()
    async with client.connect(url, resume=False, **PARAMETERS) as session:

        async def listen() -> None:
            async for event in session:
                if event["type"] == "transcript.final":
                    finals.put_nowait(time.perf_counter())

        listening = asyncio.create_task(listen())
        began, sent = time.perf_counter(), 0  # samples

        async def say(audio: bytes) -> None:
            nonlocal sent
            for at in range(0, len(audio), 2 * PIECE):
                piece = audio[at : at + 2 * PIECE]
                sent += len(piece) // 2
                # A microphone hands over a piece when its last sample was heard.
                await asyncio.sleep(began + sent / SAMPLE_RATE - time.perf_counter())
                await session.send(piece)

        for clip in turn:
            if time.perf_counter() - began > seconds:
                break
            ended = began + (sent + clip.end) / SAMPLE_RATE
            await say(clip.audio)
            flushed = time.perf_counter()
            await session.flush()
            await say(bytes(2 * BETWEEN))
            # An utterance in which Whisper hears nothing has no final.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    told = await finals.get()
                    waits.append(Wait(clip.name, told - ended, told - flushed))
        await session.end()
        await listening
    return waits


async def callers(url: str, found: Sequence[Clip], count: int, seconds: float) -> list[Wait]:
    """So many at once, each with another order of the clips."""

    async def one(number: int) -> list[Wait]:
        await asyncio.sleep(number * 0.37)  # not all at the same moment
        at = number * len(found) // count
        return await caller(url, [*found[at:], *found[:at]], seconds)

    return [wait for waits in await asyncio.gather(*map(one, range(count))) for wait in waits]


@contextlib.asynccontextmanager
async def running(repository: Path, folder: Path) -> AsyncGenerator[str]:
    os.environ["MAX_SESSIONS"] = "64"
    listener = up.listen("127.0.0.1")
    port = listener.getsockname()[1]
    stack = up.parts(repository, folder, listener, 1, 5.0)
    async with up.running(stack, f"http://127.0.0.1:{port}"):
        yield f"ws://127.0.0.1:{port}"


async def measure(
    url: str, found: Sequence[Clip], counts: Sequence[int], seconds: float
) -> list[dict[str, float]]:
    rows = list[dict[str, float]]()
    print("callers  finals  speech end -> final, ms: p50   p95   flush -> final: p50   p95")
    for count in counts:
        waits = await callers(url, found, count, seconds)
        row: dict[str, float] = {"callers": count, "finals": len(waits)}
        for name in ("after_speech", "after_flush"):
            values = [1000 * getattr(wait, name) for wait in waits]
            row |= {f"{name}_p{p}_ms": round(float(np.percentile(values, p))) for p in (50, 95)}
        rows.append(row)
        print(
            f"{count:7}{len(waits):8}{row['after_speech_p50_ms']:27}{row['after_speech_p95_ms']:6}"
            f"{row['after_flush_p50_ms']:22}{row['after_flush_p95_ms']:6}"
        )
    return rows


async def _main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        choice = Choice(checkpoints=args.checkpoint)
        repository, run = up.prepare(choice, args.data_dir or Path(folder))
        found = clips(args.corpus, repository / "silero_vad" / "1" / "silero.onnx")
        async with contextlib.AsyncExitStack() as stack:
            url = args.url or await stack.enter_async_context(running(repository, run))
            await caller(url, found[:2], 60.0)  # what is slow the first time
            rows = await measure(url, found, args.callers, args.seconds)
    print(json.dumps({"machine": machine.described(), "runs": rows}))


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--url", help="a server that runs, instead of one of its own")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="VARIANT=FOLDER")
    parser.add_argument("--data-dir", type=Path, help="where its models are kept")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run (120)")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
