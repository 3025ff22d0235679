"""
NVIDIA's perf_analyzer against the models: a table for people, and one JSON line last.

It measures Triton and the models alone, and knows no gateway, worker or Redis. What it asks is
what sessions ask, made from the recordings in demo/samples:

    speech    silero_vad: a whole recording in hops of 96 ms, then an END without audio
    final     whisper: an utterance, word times wanted
    full      the same in a window of 30 s: the second try of a final whose scores look bad
    partial   whisper: an utterance up to every half second of it, made to begin with the tokens
              that the hypotheses before had agreed on

and it asks in two regimes:

    in flight   closed loop: so many requests are always under way. What the models can do.
    live        open loop: the hops of so many callers, when they would speak them. What they feel.

Calls go over HTTP, as ours do. Only perf_analyzer's own numbers are shown; nothing is computed from
them but sums and ratios.
"""

import argparse
import asyncio
import contextlib
import csv
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import machine
import single_triton
from perf_analyzer_binary import Binary, PerfAnalyzerError, find_binary, last_line
from rich.console import Console
from spoken_requests import (
    InputData,
    Recording,
    Step,
    final_requests,
    mixed,
    partial_requests,
    recordings,
    speech_requests,
    step,
    write,
)

from dalston.orchestrator.inference.triton_client import InferenceError, Triton
from dalston.orchestrator.transcription.model_requests import TranscriptRequest
from dalston.orchestrator.transcription.session import HOP
from dalston.triton.contract import (
    SAMPLE_RATE,
    VAD_MODEL,
    VARIANTS,
    Variant,
    whisper_model,
)
from dalston.triton.installation import ServerError

ROOT = Path(__file__).resolve().parent.parent

HOPS_PER_S = SAMPLE_RATE / HOP

console = Console(stderr=True, highlight=False)


# --- the matrix ----------------------------------------------------------------------------------

Asked = Literal["speech", "final", "full", "partial"]


@dataclass(frozen=True)
class Load:
    model: str
    asked: Asked
    in_flight: int = 0  # closed loop: requests always under way
    live: int = 0  # open loop: callers who speak in real time


FAST, ACCURATE = whisper_model("fast"), whisper_model("accurate")
MATRIX = [
    *(Load(VAD_MODEL, "speech", in_flight=count) for count in (1, 8, 32, 64)),
    *(Load(VAD_MODEL, "speech", live=count) for count in (32, 128)),
    *(Load(FAST, "final", in_flight=count) for count in (1, 4, 16)),
    Load(FAST, "full", in_flight=1),
    *(Load(FAST, "partial", in_flight=count) for count in (1, 4, 16)),
    *(Load(ACCURATE, "final", in_flight=count) for count in (1, 4)),
]
QUICK = [
    Load(VAD_MODEL, "speech", in_flight=8),
    Load(VAD_MODEL, "speech", live=32),
    Load(FAST, "final", in_flight=2),
    Load(FAST, "partial", in_flight=2),
    Load(ACCURATE, "final", in_flight=1),
]


# --- input data ---------------------------------------------------------------------------------


def write_all(
    folder: Path, url: str, loads: Iterable[Load], spoken: Sequence[Recording]
) -> dict[tuple[str, Asked], InputData]:
    """A file for each pair of a model and what is asked of it."""
    folder.mkdir(parents=True, exist_ok=True)
    written = dict[tuple[str, Asked], InputData]()
    for load in loads:
        model, kind = key = load.model, load.asked
        if key in written:
            continue
        data: Sequence[Step] | Sequence[Sequence[Step]]
        if kind == "speech":
            data = [[step(r) for r in speech_requests(recording)] for recording in spoken]
        elif kind == "partial":
            data = mixed(map(step, asyncio.run(_ask_for_partials(url, spoken, _variant(model)))))
        else:
            requests = final_requests(spoken, _variant(model))
            data = mixed(step(request, full_window=kind == "full") for request in requests)
        written[key] = write(folder / f"{model}.{kind}.json", data)
    return written


async def _ask_for_partials(
    url: str, recordings: Sequence[Recording], variant: Variant
) -> list[TranscriptRequest]:
    triton = Triton(url)
    try:
        await triton.variants()
        return await partial_requests(recordings, variant, triton.transcribe)
    finally:
        await triton.close()


def _variant(model: str) -> Variant:
    return next(variant for variant in VARIANTS if whisper_model(variant) == model)


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Time windows until three in a row resemble each other: throughput and mean latency within
    `within` percent. On a machine of one's own the tool's default of 10 will do."""

    speech_ms: int
    whisper_ms: int  # long enough for a hundred requests or so
    within: int = 30
    most: int = 10


@dataclass(frozen=True)
class Requests:
    """So many and no more, whatever they take. This version counts whole seconds then, so the
    rate is too low: for trying out, not for measuring."""

    count: int


@dataclass(frozen=True)
class Measured:
    requests: int
    per_second: float
    average_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float  # in Triton's scheduler
    compute_ms: float  # in the model, of the whole batch that a request was part of
    batch: float  # requests in one execution, on average


def measure(
    binary: Binary, url: str, load: Load, data: InputData, until: Windows | Requests
) -> Measured | None:
    """One run of perf_analyzer; None if its windows never resembled each other.

    Raises BenchError; a single request that fails is enough.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.csv")
        done = binary.run(*_arguments(url, load, data, until, report))
        if done.returncode == 0 and report.exists():
            return parse(report.read_text(), done.stdout)
    if "Failed to obtain stable measurement" in done.stderr:
        return None
    raise PerfAnalyzerError(f"perf_analyzer failed on {load.model}: {last_line(done.stderr)}")


def _arguments(
    url: str, load: Load, data: InputData, until: Windows | Requests, report: Path
) -> list[str]:
    arguments = ["-m", load.model, "-u", url, "--input-data", str(data.path)]
    arguments += ["-f", str(report), "--verbose-csv"]
    if load.live:
        # A caller's next hop waits for the answer to the one before, as in a session.
        arguments += ["--request-rate-range", f"{load.live * HOPS_PER_S:.3f}"]
        arguments += ["--num-of-sequences", str(load.live), "--serial-sequences"]
    else:
        arguments += ["--concurrency-range", str(load.in_flight)]
    match until:
        case Requests(count):
            arguments += ["--request-count", str(count)]
        case Windows():
            window = until.speech_ms if load.asked == "speech" else until.whisper_ms
            arguments += ["--measurement-interval", str(window), "--max-trials", str(until.most)]
            arguments += ["--stability-percentage", str(until.within)]
    return arguments


def parse(report: str, output: str) -> Measured:
    """perf_analyzer's CSV (one row; microseconds), and what only its output tells."""
    (row,) = csv.DictReader(io.StringIO(report))

    def told(what: str) -> int:
        found = re.search(rf"^\s*{what}: (\d+)", output, re.MULTILINE)
        assert found, f"perf_analyzer told no {what!r}"
        return int(found[1])

    def ms(*columns: str) -> float:
        return sum(float(row[column]) for column in columns) / 1000

    return Measured(
        requests=told("Request count"),
        per_second=float(row["Inferences/Second"]),
        average_ms=ms("Avg latency"),
        p50_ms=ms("p50 latency"),
        p95_ms=ms("p95 latency"),
        p99_ms=ms("p99 latency"),
        queue_ms=ms("Server Queue"),
        compute_ms=ms("Server Compute Input", "Server Compute Infer", "Server Compute Output"),
        batch=told("Inference count") / max(1, told("Execution count")),
    )


# --- the server ----------------------------------------------------------------------------------


def served_by(url: str) -> tuple[str, set[str]]:
    """Triton's version, and the models that are ready. Raises ServerError."""
    statistics = f"http://{url}/v2/models/stats"  # of models that are ready
    try:
        with urlopen(f"http://{url}/v2", timeout=5) as server, urlopen(statistics, timeout=5) as of:
            models = json.load(of)["model_stats"]
            return json.load(server)["version"], {model["name"] for model in models}
    except (OSError, HTTPException, ValueError) as error:
        raise ServerError(f"no Triton answers at {url}: {error}") from None


# --- the table -----------------------------------------------------------------------------------

HEAD = (
    "MODEL             ASKED    LOAD          req/s  audio s/s    mean     p50     p95     p99"
    "   queue  compute  batch"
)


def line(load: Load, measured: Measured | None, data: InputData) -> str:
    """A row of the table; latencies are milliseconds."""
    regime = f"{load.live} live" if load.live else f"{load.in_flight} in flight"
    head = f"{load.model:17} {load.asked:8} {regime:12}"
    if measured is None:
        return f"{head} did not settle: the machine was busy with something else"
    m = measured
    return (
        f"{head} {m.per_second:6.1f} {m.per_second * data.audio_s:10.1f} "
        f"{m.average_ms:7.1f} {m.p50_ms:7.1f} {m.p95_ms:7.1f} {m.p99_ms:7.1f} "
        f"{m.queue_ms:7.1f} {m.compute_ms:8.1f} {m.batch:6.1f}"
    )


def run(
    binary: Binary,
    url: str,
    loads: Sequence[Load],
    until: Windows | Requests,
    spoken: Sequence[Recording],
    folder: Path,
) -> None:
    """Measure; print the table, row by row, and the JSON line. Input data goes to `folder`."""
    version, models = served_by(url)
    for model in sorted({load.model for load in loads} - models):
        console.print(f"{model} is not served at {url}, and left out")
    loads = [load for load in loads if load.model in models]
    with console.status("writing input data; the models are asked for the partials"):
        data = write_all(folder, url, loads, spoken)
    here = machine.described()
    print(f"{here['gpu'] or here['cpu']}, {here['cores']} cores, Triton {version}", end="\n\n")
    print(HEAD, flush=True)
    rows = list[dict[str, Any]]()
    for number, load in enumerate(loads, 1):
        with console.status(f"{number} of {len(loads)}: {load.model}, {load.asked}"):
            measured = measure(binary, url, load, data[load.model, load.asked], until)
        print(line(load, measured, data[load.model, load.asked]), flush=True)
        numbers = asdict(measured) if measured else None
        rows.append({**asdict(load), "measured": numbers})
    result = {
        "bench": "perf_analyzer",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "triton": version,
        "machine": here | {"load_average_after": round(os.getloadavg()[0], 1)},
        "rows": rows,
    }
    print()
    print(json.dumps(result))


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure the models with NVIDIA's perf_analyzer.",
        epilog="How to read the table: docs/perf_analyzer.md.",
    )
    parser.add_argument("--quick", action="store_true", help="a few rows, short windows")
    parser.add_argument("--url", metavar="HOST:PORT", help="HTTP of a Triton that runs already")
    parser.add_argument(
        "--repository",
        type=Path,
        default=ROOT / "build" / "model_repository",
        help="what `dalston models build` made, for a Triton of its own (%(default)s)",
    )
    parser.add_argument("--binary", type=Path, help="a perf_analyzer (the one on PATH, or fetched)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build" / "perf_analyzer",
        help="for the binary, the input data and the log (%(default)s)",
    )
    given = parser.parse_args()
    loads, until = (
        (QUICK, Windows(1000, 2000, 50)) if given.quick else (MATRIX, Windows(2000, 4000))
    )
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        binary = find_binary(given.binary, folder)
        with contextlib.ExitStack() as ours:
            url = given.url
            if not url:
                with console.status("starting Triton"):
                    url = ours.enter_context(
                        single_triton.running(given.repository, folder / "run")
                    )
            run(binary, url, loads, until, recordings(), folder / "data")
    except (PerfAnalyzerError, InferenceError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
