"""
This server and others, side by side: how many callers each holds on the same cores, with the same
checkpoint and the same recordings.

    python bench/peers.py                      all servers, first "tiny", then "demo"
    python bench/peers.py --quick              shorter calls
    python bench/peers.py --servers dalston RealtimeSTT --checkpoints demo
    python bench/peers.py --corpus FOLDER --checkpoints FOLDER [--stock FOLDER]

The promise is the same for all and stands below. Of every server the number of callers is doubled
until it is broken, then halved in. A number of callers gets a second chance, and a run counts for
nothing in which somebody else used the cores. One server runs at a time; with --rounds all take
their turns again, and the median of each counts.

"tiny" has the dimensions of Whisper tiny and always says the same, with timestamps that mean
nothing. whisper-live and WhisperLiveKit go by timestamps and by words that change: for them
"demo", smaller, which really transcribes, is the fair one.

With a corpus (bench/corpus.py) callers say its English utterances, each with a second of silence
after it. A folder with a checkpoint is served as the profile "cpu" serves its own; if it was
changed for short windows, --stock names what the others serve, who have none.

The others are installed into environments of their own (--environments). Progress and tables go
to standard error; one JSON object is printed, last.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import peer_servers
import psutil
import scoring
import served
from callers import scripts
from environments import InstallError
from peer_servers import MOST_SESSIONS, PEERS, PeerError
from rich.console import Console
from rich.table import Table
from slo import LATE_P95_S, most_streams, percentile

from dalston.cli.models import Choice
from dalston.cli.up import StackError
from dalston.triton.process import dies_with_us, free_port

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "build" / "bench"
OURS = "dalston"
OWN = ("tiny", "demo")  # checkpoints that are made here
WARM_UP_S = 8.0

FIRST_TEXT_P95_S = 1.5  # from the true onset of a sentence
FINAL_P95_S = 1.0  # from its true end; the endpoint alone takes 0.5 of it
# More, by all other processes together, and a run is void; those that are nice do not count.
OTHERS_PERCENT = 25.0
CHANCES, WAIT_S = 2, 10.0  # of each number of streams; void runs are repeated as often again
# Servers that cut by the clock never cut twice alike, so a few words may differ.
CHANGED_WORDS = 0.1

PROMISE = (
    f"first text p95 < {FIRST_TEXT_P95_S:g} s after the onset of a sentence, final p95 < "
    f"{FINAL_P95_S:g} s after its end, a final of every sentence, at most {CHANGED_WORDS:.0%} of "
    "the words unlike those of one caller alone"
)
console = Console(highlight=False, stderr=True, width=130)


@dataclass(frozen=True)
class Run:
    """So many callers, and what they cost."""

    streams: int
    calls: list[dict[str, Any]]  # as of peer_callers.Call
    late: list[float] = field(default_factory=list[float])  # of the callers, seconds
    core_percent: float = 0.0  # of the server
    rss_mb: float = 0.0
    others_percent: float = 0.0  # of a core, used by neither server nor callers
    seconds: float = 30.0  # of a call
    corpus: Path | None = None  # whose utterances were said

    def void(self) -> str:
        """Why this run says nothing."""
        late_s = percentile(self.late, 0.95) or 0.0
        if late_s > LATE_P95_S:
            return f"the callers were {late_s * 1000:.0f} ms late"
        if self.others_percent > OTHERS_PERCENT:
            return f"somebody else used {self.others_percent:.0f} % of a core"
        return ""

    def times(self, name: str) -> dict[str, float | None]:
        values = [value for call in self.calls for value in call[name]]
        found = {f"p{share}": percentile(values, share / 100) for share in (50, 95)}
        return {key: None if v is None else round(1000 * v, 1) for key, v in found.items()}

    def total(self, name: str) -> int:
        return sum(call[name] for call in self.calls)

    def word_error_rate(self) -> float:
        """Of all calls, against what was said."""
        every, pairs = scripts(self.seconds, self.corpus), list[tuple[str, str]]()
        for call in self.calls:
            number: int = call["script"]
            said = " ".join(sentence.text for sentence in every[number].sentences)
            pairs.append((said, call["text"]))
        return scoring.wer(pairs)


def broken(run: Run, alone: Run) -> list[str]:
    """What of the promise was not kept, a sentence each. alone: one caller."""
    said = list[str]()
    if void := run.void():
        said.append(f"{void}: the run is void")
    failures = [call["failure"] for call in run.calls if call["failure"]]
    if failures:
        said.append(f"{len(failures)} calls failed: {failures[0]}")
    for name, what, limit_s in (
        ("first_text", "first text", FIRST_TEXT_P95_S),
        ("after_speech", "final after speech", FINAL_P95_S),
    ):
        value = run.times(name)["p95"]
        if value is None or value >= 1000 * limit_s:
            said.append(f"{what} p95 {'none' if value is None else f'{value:.0f} ms'}")
    if count := run.total("unseen"):
        said.append(f"{count} sentences never shown")
    if count := run.total("lost"):
        said.append(f"{count} finals lost")
    own = {call["script"]: call["words"].split() for call in alone.calls}
    pairs = [
        (own[call["script"]], call["words"].split())
        for call in run.calls
        if call["script"] in own and not call["failure"]
    ]
    words = sum(len(before) for before, _ in pairs)
    changed = sum(scoring.errors(before, now) for before, now in pairs)
    if changed > CHANGED_WORDS * words:
        said.append(f"{changed} of {words} words unlike those of one caller alone")
    return said


async def callers(server: str, url: str, streams: int, seconds: float, corpus: Path | None) -> Run:
    """A run; the server is all that we started, but for the callers."""
    script = str(HERE / "peer_callers.py")
    arguments = ["--server", server, "--url", url, "--streams", str(streams)]
    arguments += ["--seconds", str(seconds), *(("--corpus", str(corpus)) if corpus else ())]
    process = await asyncio.create_subprocess_exec(
        *dies_with_us([sys.executable, script, *arguments]),
        stdout=subprocess.PIPE,
    )
    reading = asyncio.create_task(process.communicate())
    busy, (began, rss_mb) = _busy(), _used(process.pid)
    core_s = began
    try:
        while not reading.done():
            await asyncio.wait([reading], timeout=1)
            core_s, now_mb = _used(process.pid)
            rss_mb = max(rss_mb, now_mb)
    finally:
        if process.returncode is None:
            process.kill()
    out, _ = await reading
    if process.returncode:
        raise RuntimeError(f"the callers ended with status {process.returncode}")
    told = json.loads(out)
    core_percent = 100 * (core_s - began) / told["elapsed_s"]
    others = 100 * (_busy() - busy) / told["elapsed_s"] - core_percent - told["core_percent"]
    told_of = told["calls"], told["late"]
    return Run(streams, *told_of, core_percent, rss_mb, others, seconds, corpus)


def _busy() -> float:
    """Seconds that all cores were busy, and those that another virtual machine took."""
    line = Path("/proc/stat").read_text().splitlines()[0]  # proc(5)
    user, _nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _used(callers: int) -> tuple[float, float]:
    """Processor seconds and megabytes of what we started, without that process."""
    core_s = rss_mb = 0.0
    for process in psutil.Process().children(recursive=True):
        if process.pid != callers:
            try:
                times, memory = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue
            core_s += times.user + times.system
            rss_mb += memory / 1e6
    return core_s, rss_mb


async def search(server: str, url: str, seconds: float, corpus: Path | None) -> dict[str, Any]:
    """The most streams of a server that runs, and what callers notice then."""
    await callers(server, url, 1, WARM_UP_S, corpus)  # some load their model only now
    runs, complaints = dict[int, Run](), dict[int, list[str]]()

    async def kept(streams: int) -> bool:
        chances, voids = CHANCES, CHANCES
        while chances:
            run = await callers(server, url, streams, seconds, corpus)
            said = broken(run, runs[1] if streams > 1 else run)
            console.print(f"{streams:4} streams: {'; '.join(said) or 'kept'}")
            if streams not in runs or runs[streams].void() or not said:
                runs[streams], complaints[streams] = run, said
            if not said:
                return True
            if run.void() and voids:
                voids -= 1
                await asyncio.sleep(WAIT_S)
            else:
                chances -= 1
        return False

    most = await most_streams(kept, 1, MOST_SESSIONS)
    at = runs[max(1, most)]
    more = min((streams for streams, said in complaints.items() if said), default=None)
    return {
        "streams_at_slo": most,
        "of_streams": at.streams,
        "first_partial_ms": at.times("first_text"),
        "final_after_speech_ms": at.times("after_speech"),
        "wer": round(at.word_error_rate(), 4),
        "lost_finals": at.total("lost"),
        "sentences": at.total("sentences"),
        "core_percent": round(at.core_percent, 1),
        "others_percent": round(at.others_percent, 1),
        "rss_mb": round(at.rss_mb, 1),
        "broken_at": more,
        "broken": complaints[more] if more else [],
    }


@asynccontextmanager
async def server(
    name: str, checkpoint: str, environments: Path, stock: Path | None
) -> AsyncGenerator[tuple[str, str]]:
    """It runs: what its callers are called, and its URL."""
    if name == OURS:
        named, choice = known(checkpoint)
        async with served.running(FOLDER, named, MOST_SESSIONS, choice=choice) as stack:
            yield "Dalston", stack.url
        return
    peer = next(peer for peer in PEERS if peer.name == name)
    environment = peer_servers.install(peer, environments, console.print)
    log = FOLDER / "peers" / f"{name.replace(', ', '-')}.log"
    files = model(str(stock or checkpoint))
    with peer_servers.running(peer, environment, files, free_port(), log) as url:
        yield peer.server, url


def known(checkpoint: str) -> tuple[str, Choice | None]:
    """Its name, and how it is chosen if it is none of our own."""
    return (checkpoint, None) if checkpoint in OWN else served.chosen("cpu", checkpoint)


def model(checkpoint: str) -> Path:
    """The very files that ours serves, beside the tokenizer that faster-whisper looks for."""
    if checkpoint not in OWN:
        return Path(checkpoint).resolve()
    repository, _ = served.prepare(FOLDER, checkpoint)
    folder = FOLDER / "peers" / checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    files = [*(repository / "whisper_fast" / "1" / "checkpoint").iterdir()]
    for file in (*files, HERE.parent / "demo" / "checkpoint" / "tokenizer.json"):
        link = folder / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    return folder


async def measure(
    name: str, checkpoint: str, args: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    console.print(f"\n[bold]{name}[/bold], {checkpoint}")
    try:
        async with server(name, checkpoint, args.environments, args.stock) as (kind, url):
            return await search(kind, url, seconds, args.corpus)
    except (InstallError, PeerError, StackError) as error:
        console.print(f"[red]{error}[/red]")
        return {"streams_at_slo": None, "reason": str(error)}


def median(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the rounds of one server; the reason if it never ran."""
    ran = [result for result in results if result["streams_at_slo"] is not None]
    if not ran:
        return results[0]
    found = [result["streams_at_slo"] for result in ran]
    most = statistics.median_low(found)
    return {**next(r for r in ran if r["streams_at_slo"] == most), "rounds": found}


def compared(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One that does not even hold one caller counts as if it did; one that did not run as null."""
    held = {
        name: None if result["streams_at_slo"] is None else max(1, result["streams_at_slo"])
        for name, result in results.items()
    }
    ours = held.pop(OURS, None)
    best = max((streams for streams in held.values() if streams), default=None)
    return {
        "streams_at_slo": ours,
        "peers": held,
        "ratio": round(ours / best, 1) if ours and best else None,
        "holds_none": [name for name, result in results.items() if result["streams_at_slo"] == 0],
        "servers": results,
    }


def show(title: str, results: dict[str, dict[str, Any]]) -> None:
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("server")
    for name in (
        "streams",
        "first partial",
        "final after speech",
        "WER",
        "lost",
        "cores",
        "memory",
    ):
        table.add_column(name, justify="right")
    table.add_column("more streams")
    for name, result in results.items():
        if result["streams_at_slo"] is None:
            table.add_row(name, "-", "", "", "", "", "", "", result["reason"])
            continue
        times = [
            " / ".join("-" if ms is None else f"{ms:.0f}" for ms in result[key].values()) + " ms"
            for key in ("first_partial_ms", "final_after_speech_ms")
        ]
        table.add_row(
            name,
            str(result["streams_at_slo"]),
            *times,
            f"{result['wer']:.1%}",
            f"{result['lost_finals']} of {result['sentences']}",
            f"{result['core_percent']:.0f} %",
            f"{result['rss_mb']:.0f} MB",
            f"{result['broken_at']}: {'; '.join(result['broken'])}" if result["broken"] else "",
        )
    console.print(table)
    console.print("times are p50 / p95, at that number of streams or, if it is 0, at one\n")


async def compare(args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    names: list[str] = args.servers
    found: dict[str, dict[str, Any]] = {}
    for checkpoint in args.checkpoints:
        called, _ = known(checkpoint)
        rounds = {name: list[dict[str, Any]]() for name in names}
        for _ in range(args.rounds):
            for name in names:
                saved = FOLDER / "peers" / f"{name.replace(', ', '-')}.{called}.json"
                if args.resume and saved.exists():
                    rounds[name].append(json.loads(saved.read_text()))
                    continue
                result = await measure(name, checkpoint, args, seconds)
                saved.write_text(json.dumps(result))
                rounds[name].append(result)
        results = {name: median(results) for name, results in rounds.items()}
        show(f"{called}, calls of {seconds:g} s", results)
        found[called] = compared(results)
    first, *rest = found
    return {**found[first], "checkpoint": first, **{name: found[name] for name in rest}}


def main() -> int:
    assert __doc__
    names = [OURS, *(peer.name for peer in PEERS)]
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="calls of 15 s")
    parser.add_argument("--servers", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        default=list(OWN),
        metavar="CHECKPOINT",
        help=f"{', '.join(OWN)} or a folder ({' '.join(OWN)})",
    )
    parser.add_argument("--stock", type=Path, help="a folder that the others serve instead")
    parser.add_argument("--corpus", type=Path, help="human speech, as in bench/corpus.py")
    parser.add_argument("--rounds", type=int, default=1, help="of all servers (1)")
    parser.add_argument("--cores", type=int, nargs="+", help="for servers and callers (all)")
    parser.add_argument("--resume", action="store_true", help="keep what was measured before")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "dalston-bench"
    )
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, args.cores)
    seconds = 15.0 if args.quick else 30.0
    (FOLDER / "peers").mkdir(parents=True, exist_ok=True)
    console.print(f"the promise: {PROMISE}")
    result = asyncio.run(compare(args, seconds))
    versions = {
        peer.package: peer_servers.version(peer, args.environments / peer.package)
        for peer in PEERS
        if (args.environments / peer.package / "made").exists()
    }
    where = {"machine": machine.described(), "commit": machine.commit(), "seconds": seconds}
    print(json.dumps({**result, "slo": PROMISE, "versions": versions, **where}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
