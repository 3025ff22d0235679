"""
How many callers one machine holds, and what they notice meanwhile.

    python bench/load.py                  the most streams at the promise, and 70 % of them
    python bench/load.py --quick          the same within five minutes, less sure
    python bench/load.py --streams 1 4 8  these numbers of streams instead
    python bench/load.py --corpus FOLDER --profile cpu
    python bench/load.py --corpus FOLDER --checkpoint fast=FOLDER --streams 4

The promise stands in slo.py. Callers are a process of their own (callers.py) on the same cores,
so their own time is measured too, and a run in which they were late counts for nothing. Models:
"tiny" has the dimensions of Whisper tiny and always says the same, "demo" really transcribes. With
a corpus (bench/corpus.py) callers say its English utterances, each with a second of silence after
it, and the models are those of the profile, or of the checkpoint instead.

Progress and tables go to standard error; one JSON object is printed, last.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import served
import slo
from callers import BEGIN_WITHIN_S, scripts
from rich.console import Console
from rich.table import Table
from slo import Run

from dalston.cli.models import Choice
from dalston.triton.process import dies_with_us
from dalston.triton.server import ONE_THREAD

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "build" / "bench"
MOST_STREAMS = 512
SHARE = 0.7  # of the most streams: where latencies are told
OVERLOAD_S = 120.0
CEILING_S = 40.0  # of a call
console = Console(highlight=False, stderr=True, width=130)


@dataclass(frozen=True)
class Bench:
    """A running stack, and what one caller alone hears from it."""

    stack: served.Stack
    seconds: float  # of a call
    alone: Run
    corpus: Path | None = None  # whose utterances are said

    async def run(self, streams: int) -> Run:
        """Once more if the callers themselves were late: somebody else may have used the cores."""

        async def once() -> Run:
            arguments = ("--streams", str(streams))
            return await _run(
                self.stack, self.seconds, *arguments, streams=streams, corpus=self.corpus
            )

        run = await once()
        if run.late_p95_s > slo.LATE_P95_S:
            console.print(f"{streams:4} streams: the callers were late; once more")
            run = await once()
        return run


async def _run(
    stack: served.Stack,
    seconds: float,
    *arguments: str,
    streams: int,
    corpus: Path | None = None,
) -> Run:
    before = stack.usage()
    if corpus:
        arguments = (*arguments, "--corpus", str(corpus))
    command = [sys.executable, str(HERE / "callers.py"), "--url", stack.url]
    process = await asyncio.create_subprocess_exec(
        *dies_with_us([*command, "--seconds", str(seconds), *arguments]),
        stdout=subprocess.PIPE,
    )
    reading = asyncio.create_task(process.communicate())
    usage = before
    while not reading.done():
        await asyncio.wait([reading], timeout=1)
        now = stack.usage()
        # Memory is that of the fullest moment, processor time that of all.
        rss_mb = {role: max(mb, usage.rss_mb[role]) for role, mb in now.rss_mb.items()}
        usage = served.Usage(now.core_s, rss_mb, now.triton)
    out, _ = await reading
    told = json.loads(out)
    return Run(
        streams=streams,
        seconds=seconds,
        calls=told["calls"],
        late=told["late"],
        generator_core_percent=told["core_percent"],
        elapsed_s=told["elapsed_s"],
        usage=usage.since(before),
        idle_rss_mb=before.rss_mb,
        corpus=corpus,
    )


async def most_streams(bench: Bench) -> int:
    async def kept(streams: int) -> bool:
        complaints = slo.broken(await bench.run(streams), bench.alone)
        console.print(f"{streams:4} streams: {'; '.join(complaints) or 'kept'}")
        return not complaints

    return await slo.most_streams(kept, 4, MOST_STREAMS)


@asynccontextmanager
async def bench(
    checkpoint: str,
    seconds: float,
    capacity: int,
    choice: Choice | None = None,
    corpus: Path | None = None,
) -> AsyncGenerator[Bench]:
    """A stack with that checkpoint, warm. choice: as served.running takes it."""
    async with served.running(FOLDER, checkpoint, capacity, choice=choice) as stack:
        alone = await _run(stack, seconds, "--alone", streams=1, corpus=corpus)
        if alone.failures:
            raise SystemExit(f"one caller alone failed: {alone.failures[0]}")
        yield Bench(stack, seconds, alone, corpus)


async def ceiling(streams: int) -> float:
    """The share of a run's time in which the models alone answer what it asked of them."""
    seconds = CEILING_S
    recording = FOLDER / "recording.pickle"
    async with served.running(FOLDER, "tiny", streams + 2, recording) as stack:
        run = await _run(stack, seconds, "--streams", str(streams), streams=streams)
        if failures := run.failures:
            raise SystemExit(f"the recorded run failed: {failures[0]}")
    # All callers are there between these seconds.
    first = BEGIN_WITHIN_S
    last = min(script.seconds for script in scripts(seconds))
    command = [str(HERE / "ceiling.py"), str(recording), str(FOLDER / "tiny" / "model_repository")]
    replay = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, str(first), str(last)),
        stdout=subprocess.PIPE,
        env=os.environ | ONE_THREAD,  # as Triton's processes have it
    )
    out, _ = await replay.communicate()
    return json.loads(out)["seconds"] / (last - first)


async def overloaded(streams: int) -> dict[str, Any]:
    """Nobody is refused, and twice as many call as the promise holds for: what is lost?"""
    async with bench("tiny", OVERLOAD_S, streams + 2) as b:
        run = await b.run(streams)
    told = slo.summary(run, b.alone)
    show(f"tiny, {streams} streams: too many", [told])
    return told | {"failures": len(run.failures)}


def _spread(milliseconds: dict[str, float | None]) -> str:
    """Too many callers may get no partials at all."""
    if milliseconds["p95"] is None:
        return "none"
    return f"{milliseconds['p50']:.0f} / {milliseconds['p95']:.0f} ms"


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, title=title, title_justify="left")
    for name in (
        "streams",
        "first partial",
        "partial lag",
        "after endpoint",
        "after speech",
        "lost",
        "partials/s",
        "whisper batch, queue",
        "core/stream: models",
        "gateway+worker",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        times = [
            _spread(row[name])
            for name in (
                "first_partial_ms",
                "partial_lag_ms",
                "final_after_endpoint_ms",
                "final_after_speech_ms",
            )
        ]
        table.add_row(
            str(row["streams"]),
            *times,
            f"{row['lost_finals']} of {row['finals'] + row['lost_finals']}",
            f"{row['partials_per_second']:.2f}",
            f"{row['whisper_batch']:.1f}, {row['whisper_queue_ms']:.0f} ms",
            f"{row['core_percent_per_stream']['models']:.1f} %",
            f"{row['orchestration_core_percent_per_stream']:.2f} %",
        )
    console.print(table)
    console.print("times are p50 / p95", style="dim")


async def given(
    streams: list[int],
    checkpoint: str,
    seconds: float,
    choice: Choice | None = None,
    corpus: Path | None = None,
) -> dict[str, Any]:
    """So many streams, one after the other."""
    async with bench(checkpoint, seconds, max(streams) + 2, choice, corpus) as b:
        rows = [slo.summary(await b.run(count), b.alone) for count in streams]
    show(f"{checkpoint}, {seconds:g} s", rows)
    show_words(rows)
    return {"checkpoint": checkpoint, "runs": rows}


async def real(
    checkpoint: str, choice: Choice, corpus: Path, seconds: float, searches: int
) -> dict[str, Any]:
    """The same as `whole` of one checkpoint that understands, and of human speech."""
    console.print(f"the promise: {slo.PROMISE}\n")
    async with bench(checkpoint, seconds, MOST_STREAMS, choice, corpus) as b:
        found = [await most_streams(b) for _ in range(searches)]
        most = statistics.median_low(found)
        runs = [await b.run(max(1, int(share * most))) for share in (SHARE, 1)]
    rows = [slo.summary(run, b.alone) for run in runs]
    show(f"{checkpoint}, {seconds:g} s", rows)
    show_words(rows)
    return {
        "streams_at_slo": most,
        "searches": found,
        "checkpoint": checkpoint,
        "runs": rows,
    }


def show_words(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, title="words", title_justify="left")
    for name in (
        "streams",
        "WER",
        "one caller's",
        "shown and changed",
        "other capitals or marks",
        "stable, changed by the final",
        "encoder s: partials",
        "finals",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row["streams"]),
            f"{row['wer']:.1%}",
            f"{row['wer_single']:.1%}",
            f"{row['unstable_partial_word_ratio']:.1%}",
            f"{row['rewritten_word_ratio']:.1%}",
            f"{row['stable_words_changed_by_finals']} of {row['stable_words']}",
            f"{row['window_seconds']['partial']:.0f}",
            f"{row['window_seconds']['final']:.0f}",
        )
    console.print(table)


async def whole(seconds: float, searches: int) -> dict[str, Any]:
    """The most streams at the promise, and what callers notice at 70 % of them."""
    console.print(f"the promise: {slo.PROMISE}\n")
    async with bench("tiny", seconds, MOST_STREAMS) as b:
        found = [await most_streams(b) for _ in range(searches)]
        most = statistics.median_low(found)
        streams = max(1, int(SHARE * most))
        console.print(f"most streams: {most}, of {found}; now {streams}")
        tiny = slo.summary(await b.run(streams), b.alone)
    # Each is a run and its replay one after the other, and the machine is not equally fast in both.
    ratios = [await ceiling(most) for _ in range(searches)] if most else [0.0]
    ratio = statistics.median(ratios)
    console.print(f"the models alone need {100 * ratio:.0f} % of the time of {most} streams")
    async with bench("demo", seconds, MOST_STREAMS) as b:
        demo = slo.summary(await b.run(streams), b.alone)
    show(f"tiny, {streams} streams", [tiny])
    show(f"demo, {streams} streams", [demo])
    overload = None if searches == 1 else await overloaded(2 * most)
    keys = (
        "first_partial_ms",
        "final_after_endpoint_ms",
        "final_after_speech_ms",
        "lost_finals",
        "changed_stable_words",
        "orchestration_core_percent_per_stream",
        "orchestration_rss_mb_per_stream",
    )
    return {
        "streams_at_slo": most,
        "searches": found,
        "ceiling_ratio": round(ratio, 3),
        "ceilings": [round(ratio, 3) for ratio in ratios],
        **{key: tiny[key] for key in keys},
        "unstable_partial_word_ratio": demo["unstable_partial_word_ratio"],
        **{key: demo[key] for key in ("wer", "wer_single")},
        "overload": overload,
        "checkpoint": "tiny; words of demo",
        "runs": {"tiny": tiny, "demo": demo},
    }


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short search instead of three")
    parser.add_argument("--streams", type=int, nargs="+", help="these numbers, and no search")
    parser.add_argument("--corpus", type=Path, help="human speech, as in bench/corpus.py")
    parser.add_argument("--profile", default="cpu", help="for --corpus, of dalston models (cpu)")
    parser.add_argument(
        "--checkpoint",
        help="with --corpus [VARIANT=]FOLDER instead of the profile's; else tiny or demo (demo)",
    )
    parser.add_argument("--seconds", type=float, help="of a call (30; 15 if quick)")
    args = parser.parse_args()
    seconds = args.seconds or (15.0 if args.quick else 30.0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    where = {"machine": machine.described(), "commit": machine.commit(), "seconds": seconds}
    searches = 1 if args.quick else 3
    if args.corpus:
        name, choice = served.chosen(args.profile, args.checkpoint)
        if args.streams:
            result = asyncio.run(given(args.streams, name, seconds, choice, args.corpus))
        else:
            result = asyncio.run(real(name, choice, args.corpus, seconds, searches))
    elif args.streams:
        result = asyncio.run(given(args.streams, args.checkpoint or "demo", seconds))
    else:
        result = asyncio.run(whole(seconds, searches))
    print(json.dumps({**result, "promise": slo.PROMISE, **where}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
