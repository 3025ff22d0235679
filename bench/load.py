"""
How it holds up under callers: N sessions paced in real time, and when their words came back.

    python bench/load.py [--streams 1 4 8] [--url ws://...] [--json]

Each session streams the committed recordings, whose sentences and times are known, one after the
other, starting at a moment of its own. What is measured is what a caller notices:

    first partial   from the true onset of a sentence to the first partial with text
    after endpoint  from the vad.speech_end message to the final
    after speech    from the true end of a sentence to its final; at least 0.5 s of it is the
                    silence that makes an endpoint

The generator runs on the same machine; when it is late itself the run says so, for then the
numbers are its own. The last line is one JSON object.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import tempfile
import time
import wave
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import psutil
import wer
from rich.console import Console
from rich.table import Table

from dalston import client
from dalston.cli import up
from dalston.cli.models import Choice
from dalston.triton.process import free_port

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "demo" / "samples"
RATE, CHUNK_S = 16_000, 0.1
MATCH_S = 0.6  # a final belongs to a sentence if it begins so near to it
console = Console(highlight=False, stderr=True)


@dataclass(frozen=True)
class Sentence:
    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Recording:
    audio: bytes
    sentences: list[Sentence]


@dataclass
class Measured:
    """Of all sessions of a run; seconds."""

    first_partial: list[float] = field(default_factory=list[float])
    after_endpoint: list[float] = field(default_factory=list[float])
    after_speech: list[float] = field(default_factory=list[float])
    lateness: list[float] = field(default_factory=list[float])  # of the generator
    sentences: int = 0
    lost: int = 0  # sentences that got no final
    words: int = 0
    word_errors: int = 0
    stable_words: int = 0
    stable_words_changed: int = 0
    failures: list[str] = field(default_factory=list[str])


def recordings() -> list[Recording]:
    found: list[Recording] = []
    for sample in json.loads((SAMPLES / "samples.json").read_text()):
        with wave.open(str(SAMPLES / sample["file"])) as file:
            audio = file.readframes(file.getnframes())
        pairs = zip(sample["sentences"], sample["times"], strict=True)
        found.append(Recording(audio, [Sentence(text, *times) for text, times in pairs]))
    return found


async def speak(url: str, recording: Recording, measured: Measured) -> None:
    """One session, from its first frame to session.end."""
    began = 0.0
    partials: list[tuple[float, float]] = []  # arrival, where its segment starts
    finals: list[tuple[float, client.Event]] = []
    decided: dict[float, float] = {}  # vad.speech_end timestamp -> arrival

    async with client.connect(url, language="en") as session:

        async def send() -> None:
            nonlocal began
            began = time.perf_counter()
            step = int(RATE * CHUNK_S) * 2
            for number, at in enumerate(range(0, len(recording.audio), step), 1):
                await session.send(recording.audio[at : at + step])
                due = began + number * CHUNK_S
                measured.lateness.append(max(0.0, time.perf_counter() - due))
                await asyncio.sleep(due - time.perf_counter())
            await session.end()

        sending = asyncio.create_task(send())
        try:
            async for event in session:
                now = time.perf_counter()
                match event["type"]:
                    case "transcript.partial":
                        partials.append((now, event["start"]))
                    case "vad.speech_end":
                        decided[event["timestamp"]] = now
                    case "transcript.final":
                        finals.append((now, event))
                    case _:
                        pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    assert session.ended
    stats = session.ended["stats"]
    measured.stable_words += stats["stable_words"]
    measured.stable_words_changed += stats["stable_words_changed"]
    said = [word for sentence in recording.sentences for word in sentence.text.split()]
    measured.words += len(said)
    measured.word_errors += wer.errors(said, session.ended["transcript"].split())
    for now, final in finals:
        if final["end"] in decided:
            measured.after_endpoint.append(now - decided[final["end"]])
    for sentence in recording.sentences:
        measured.sentences += 1
        own = [now for now, e in finals if abs(e["start"] - sentence.start) < MATCH_S]
        if not own:
            measured.lost += 1
            continue
        measured.after_speech.append(own[0] - began - sentence.end)
        shown = [now for now, start in partials if abs(start - sentence.start) < MATCH_S]
        if shown:
            measured.first_partial.append(shown[0] - began - sentence.start)


async def run(url: str, streams: int, seconds: float) -> Measured:
    """So many callers for about so long; each starts another session when one has ended."""
    measured, choices = Measured(), recordings()
    until = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        r = random.Random(number)
        await asyncio.sleep(r.uniform(0, min(5.0, seconds / 4)))
        for turn in itertools.count(number):
            if time.perf_counter() >= until:
                return
            try:
                await speak(url, choices[turn % len(choices)], measured)
            except (client.SessionFailed, OSError) as error:
                measured.failures.append(str(error))
                await asyncio.sleep(1)

    await asyncio.gather(*map(caller, range(streams)))
    return measured


ROLES = {"gateway": " gateway", "worker": " worker", "tritonserver": "bin/tritonserver"}


def cpu_seconds(root: int) -> dict[str, float]:
    """Processor time so far of the stack below the process `root`, by role."""
    spent = dict.fromkeys([*ROLES, "models", "redis"], 0.0)
    for process in psutil.Process(root).children(recursive=True):
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        role = next((role for role, words in ROLES.items() if words in line), None)
        if "triton_python_backend_stub" in line:
            role = "models"
        elif "redis-server" in line:
            role = "redis"
        if role:
            spent[role] += times.user + times.system
    return spent


def percentile(values: list[float], share: float) -> float | None:
    """In milliseconds; None of nothing."""
    if not values:
        return None
    ranked = sorted(values)
    return round(ranked[min(len(ranked) - 1, int(share * len(ranked)))] * 1000, 1)


def summary(streams: int, measured: Measured, cores: dict[str, float]) -> dict[str, Any]:
    def spread(values: list[float]) -> dict[str, float | None]:
        return {f"p{share}": percentile(values, share / 100) for share in (50, 95, 99)}

    return {
        "streams": streams,
        "sentences": measured.sentences,
        "lost_finals": measured.lost,
        "failures": len(measured.failures),
        "first_partial_ms": spread(measured.first_partial),
        "final_after_endpoint_ms": spread(measured.after_endpoint),
        "final_after_speech_ms": spread(measured.after_speech),
        "wer": round(measured.word_errors / max(1, measured.words), 4),
        "stable_words": measured.stable_words,
        "stable_words_changed": measured.stable_words_changed,
        "generator_late_ms": spread(measured.lateness),
        "core_percent_per_stream": {
            role: round(100 * share / streams, 2) for role, share in cores.items()
        },
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None)
    for name in (
        "streams", "first partial", "after endpoint", "after speech", "lost", "WER", "core/stream",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        times = [
            f"{row[name]['p50']} / {row[name]['p95']} ms"
            for name in ("first_partial_ms", "final_after_endpoint_ms", "final_after_speech_ms")
        ]
        core = sum(row["core_percent_per_stream"].values())
        lost = f"{row['lost_finals']} of {row['sentences']}"
        wer = f"{100 * row['wer']:.1f} %"
        table.add_row(str(row["streams"]), *times, lost, wer, f"{core:.1f} %" if core else "-")
    console.print("\np50 / p95 of", style="dim")
    console.print(table)


async def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as exits:
        url = args.url
        if url is None:
            os.environ["MAX_SESSIONS"] = str(max(args.streams) + 2)
            repository, _ = up.prepare(Choice(), args.data_dir)
            folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
            port = free_port()
            stack = up.parts(repository, folder, "127.0.0.1", port, 1, 5.0)
            await exits.enter_async_context(up.running(stack, f"http://127.0.0.1:{port}"))
            url = f"ws://127.0.0.1:{port}"
            await run(url, 2, 1.0)  # warm
        for streams in args.streams:
            with console.status(f"{streams} streams for {args.seconds:g} s"):
                before, began = cpu_seconds(os.getpid()), time.perf_counter()
                measured = await run(url, streams, args.seconds)
                elapsed = time.perf_counter() - began
                after = cpu_seconds(os.getpid())
            cores = {role: (after[role] - before[role]) / elapsed for role in after}
            row = summary(streams, measured, {} if args.url else cores)
            rows.append(row)
            if row["generator_late_ms"]["p95"] > 50:
                console.print("[yellow]the generator itself was late: do not trust this run[/]")
            for failure in set(measured.failures):
                console.print(f"[red]{failure}[/]")
    return rows


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run (30)")
    parser.add_argument("--url", help="a server that runs already, instead of one of our own")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "build")
    args = parser.parse_args()
    rows = asyncio.run(measure(args))
    show(rows)
    result = {
        "machine": machine.described(),
        "commit": machine.commit(),
        "checkpoint": "demo",
        "runs": rows,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
