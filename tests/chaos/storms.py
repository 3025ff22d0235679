"""
Crowds that mean no good: many who connect and say nothing, many who never read, frames of ten
megabytes. What it costs in memory, and what honest callers notice meanwhile. Then connections of
every hostile kind (hostile.py), and what each costs.

    python tests/chaos/storms.py

Tables go to standard error; the last line is one JSON object. The exit status is 1 if an honest
caller's finals differ, a slot does not come back, or a log tells of an exception.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import checks
import psutil
from chaos import Chaos
from costs import Cost, costs
from deployment import ROOT, Deployment, Size, deployed
from door import PATH
from hostile import KINDS
from journal import Journal, percentile
from readings import readings
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

SIZE = Size(gateways=1, workers=1, tritons=1, sessions=400)
ALONE = Size(gateways=1, workers=1, tritons=1, sessions=400, instant=True)
SAMPLE_EVERY_S = 0.25
# Answered by a sentence that names it: the most output for what is sent. So many at once.
_ECHOED, _ECHOES = json.dumps({"type": "x" * 180}), 60


@dataclass
class Storm:
    """What one storm cost; memory in MB by process."""

    name: str
    before: dict[str, float]
    peak: dict[str, float]
    calls: int = 0
    differences: int = 0
    after_endpoint_ms: dict[str, float] = field(default_factory=dict[str, float])


async def silent(url: str, count: int, lasting_s: float) -> None:
    """Connects without audio, all at the same time."""

    async def one() -> None:
        with contextlib.suppress(OSError, WebSocketException, TimeoutError):
            async with connect(url, open_timeout=20, compression=None, proxy=None, close_timeout=1):
                await asyncio.sleep(lasting_s)

    await asyncio.gather(*(one() for _ in range(count)))


async def never_reading(url: str, count: int, lasting_s: float) -> None:
    """Clients whom much is told and who read none of it, with the smallest of buffers."""
    port = int(url.split(":")[2].split("/")[0])

    async def one() -> None:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", port))
        with contextlib.suppress(OSError, WebSocketException, TimeoutError):
            async with connect(
                url, sock=raw, compression=None, proxy=None, ping_interval=None, max_queue=1
            ) as connection:
                try:
                    async with asyncio.timeout(lasting_s):
                        while True:
                            for _ in range(_ECHOES):
                                await connection.send(_ECHOED)
                            await asyncio.sleep(0.1)
                finally:
                    connection.transport.abort()

    await asyncio.gather(*(one() for _ in range(count)))


async def huge_frames(url: str, count: int, lasting_s: float) -> None:
    """Each client sends ten megabytes at once."""

    async def one() -> None:
        with contextlib.suppress(OSError, WebSocketException, TimeoutError):
            async with (
                asyncio.timeout(lasting_s),
                connect(url, compression=None, proxy=None, max_size=None) as connection,
            ):
                await connection.send(bytes(10_000_000))
                while True:
                    await connection.recv()

    await asyncio.gather(*(one() for _ in range(count)))


def memory(deployment: Deployment) -> dict[str, float]:
    """MB of each member, its children included."""
    found = dict[str, float]()
    for name, member in deployment.members.items():
        found[name] = 0.0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(member.pid)
            for one in (process, *process.children(recursive=True)):
                found[name] += one.memory_info().rss / 1e6
    return found


async def through(chaos: Chaos, name: str, storm: Callable[[], Awaitable[None]]) -> Storm:
    """One storm, with the memory of the fullest moment and the calls that end meanwhile."""
    seen = Storm(name, memory(chaos.deployment), memory(chaos.deployment))
    calls = len(chaos.journal.of("call"))
    storming = asyncio.ensure_future(storm())
    while not storming.done():
        await asyncio.wait([storming], timeout=SAMPLE_EVERY_S)
        now = memory(chaos.deployment)
        seen.peak = {name: max(mb, seen.peak[name]) for name, mb in now.items()}
    await storming
    await chaos.quiet()  # the calls that met it are over
    met = chaos.journal.of("call")[calls:]
    late = [1000 * seconds for call in met for seconds in call["after_endpoint"]]
    seen.calls = len(met)
    seen.differences = sum(bool(call["differences"]) for call in met)
    if late:
        seen.after_endpoint_ms = {
            name: round(percentile(late, share), 1) for name, share in (("p50", 0.5), ("p95", 0.95))
        }
    return seen


async def storms(
    folder: Path, *, silent_count: int, unread_count: int, huge_count: int, lasting_s: float
) -> tuple[list[Storm], list[str]]:
    """All three; what each cost, and what was broken."""
    journal = Journal.open(folder / "storms.jsonl")
    every = [reading for reading in readings()[:13] if reading.seconds < 12]
    async with deployed(folder / "storms", SIZE) as deployment:
        url = deployment.urls[0] + PATH
        chaos = Chaos(deployment, journal, seed=1, callers=4)
        async with chaos.calls(every):
            seen = [
                await through(chaos, name, lambda s=storm, n=count: s(url, n, lasting_s))
                for name, storm, count in (
                    (f"{silent_count} connects without audio", silent, silent_count),
                    (f"{unread_count} never-reading clients", never_reading, unread_count),
                    (f"{huge_count} frames of 10 MB", huge_frames, huge_count),
                )
            ]
    await chaos.leftovers()
    return seen, journal.broken()


async def hostile(
    folder: Path, kinds: Sequence[str], connections: int, seconds: float
) -> tuple[list[Cost], list[str]]:
    """What each kind cost, and what was broken."""
    async with deployed(folder / "hostile", ALONE) as deployment:
        logs = checks.Logs(deployment.folder)
        found = await costs(deployment, kinds, connections, seconds)
        return found, logs.troubles()


def shown(found: Sequence[Cost]) -> Table:
    table = Table(box=None, title="a hostile connection, and honest callers beside it")
    table.title_justify = "left"
    for name in ("kind", "answer p95", "without", "gateway, MB each", "processor, x honest"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for cost in found:
        table.add_row(
            cost.kind.replace("_", " "),
            f"{cost.answer_p95_ms:.1f} ms",
            f"{cost.answer_p95_without_ms:.1f} ms",
            f"{cost.mb:.2f}",
            f"{cost.cores:.2f}",
        )
    return table


def told(storm: Storm) -> dict[str, Any]:
    def rounded(memory: dict[str, float]) -> dict[str, int]:
        return {name: round(mb) for name, mb in memory.items()}

    return {
        "storm": storm.name,
        "rss_mb_before": rounded(storm.before),
        "rss_mb_peak": rounded(storm.peak),
        "calls": storm.calls,
        "differences": storm.differences,
        "after_endpoint_ms": storm.after_endpoint_ms,
    }


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--silent", type=int, default=200)
    parser.add_argument("--unread", type=int, default=50)
    parser.add_argument("--huge", type=int, default=20)
    parser.add_argument("--hostile", type=int, default=5, help="connections of each kind (5)")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="of these only")
    parser.add_argument("--crowds", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each storm")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "chaos")
    args = parser.parse_args()
    (args.folder / "storms.jsonl").unlink(missing_ok=True)
    seen, broken = list[Storm](), list[str]()
    if args.crowds:
        seen, broken = asyncio.run(
            storms(
                args.folder,
                silent_count=args.silent,
                unread_count=args.unread,
                huge_count=args.huge,
                lasting_s=args.seconds,
            )
        )
    found, troubles = asyncio.run(hostile(args.folder, args.kinds, args.hostile, args.seconds / 2))
    Console(stderr=True, width=100).print(shown(found))
    broken += troubles
    for sentence in broken:
        print(f"broken: {sentence}", file=sys.stderr)
    result = {
        "storms": [told(storm) for storm in seen],
        "hostile": [asdict(cost) for cost in found],
    }
    print(json.dumps({**result, "broken": len(broken)}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
