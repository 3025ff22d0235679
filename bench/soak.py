"""
An hour of calls that come and go: whether any process grows.

    python bench/soak.py --minutes 60 --streams 76

80 % of the streams call, one call after the other, in real time. The memory and the open files of
every process are taken each 2 s and written down at once (build/bench/soak.jsonl); behind the
warm-up a line through the memory says how it grows. The table goes to standard error, one JSON
object is printed, last. The exit status is 1 if a process grows by a megabyte an hour or more, or
its files become more, or a call failed or lost a final.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import psutil
import served
from rich.console import Console
from rich.table import Table

from dalston.triton.process import dies_with_us

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "build" / "bench"
SHARE = 0.8  # of the most streams
EVERY_S, TOLD_EVERY_S = 2.0, 300.0
CALL_S = 40.0
GROWTH_MB_H = 1.0
# A few connections more or less are open when a sample is taken; a leak grows with every call.
MORE_FILES = 8
console = Console(highlight=False, stderr=True, width=110)


@dataclass(frozen=True)
class Sample:
    at_s: float  # since the calls began
    process: str  # "worker 1234": role and process id
    rss_mb: float
    files: int


@dataclass(frozen=True)
class Growth:
    process: str
    rss_mb: float  # at last
    mb_per_hour: float
    files_first: int  # the most in the first tenth of the samples, and in the last
    files_last: int
    samples: int

    @property
    def steady(self) -> bool:
        return self.mb_per_hour < GROWTH_MB_H and self.files_last <= self.files_first + MORE_FILES


def take(stack: served.Stack, at_s: float) -> list[Sample]:
    samples = list[Sample]()
    for role, process in stack.processes():
        try:
            rss_mb, files = process.memory_info().rss / 1e6, process.num_fds()
        except psutil.Error:
            continue
        samples.append(Sample(at_s, f"{role} {process.pid}", rss_mb, files))
    return samples


def growth(samples: Sequence[Sample], warm_up_s: float) -> list[Growth]:
    """Of each process that lived behind the warm-up, by least squares."""
    found = list[Growth]()
    for name in dict.fromkeys(sample.process for sample in samples):
        own = [s for s in samples if s.process == name and s.at_s >= warm_up_s]
        if len(own) < 3:
            continue
        hours = np.array([sample.at_s for sample in own]) / 3600
        slope = float(np.polyfit(hours, np.array([sample.rss_mb for sample in own]), 1)[0])
        tenth = max(1, len(own) // 10)
        first = max(sample.files for sample in own[:tenth])
        last = max(sample.files for sample in own[-tenth:])
        found.append(Growth(name, own[-1].rss_mb, slope, first, last, len(own)))
    return found


async def soak(streams: int, minutes: float, checkpoint: str) -> tuple[list[Sample], Any]:
    """All samples, and what the callers noticed."""
    samples, path = list[Sample](), FOLDER / "soak.jsonl"
    async with served.running(FOLDER, checkpoint, streams + 2) as stack:
        command = [sys.executable, str(HERE / "callers.py"), "--url", stack.url]
        command += ["--streams", str(streams), "--seconds", str(CALL_S)]
        command += ["--lasting", str(60 * minutes)]
        callers = await asyncio.create_subprocess_exec(
            *dies_with_us(command), stdout=subprocess.PIPE
        )
        calling, began = asyncio.create_task(callers.communicate()), time.monotonic()
        with path.open("w") as file:  # noqa: ASYNC230 - a few lines each time
            while not calling.done():
                await asyncio.wait([calling], timeout=EVERY_S)
                now = take(stack, time.monotonic() - began)
                samples += now
                file.writelines(json.dumps(asdict(sample)) + "\n" for sample in now)
                file.flush()
                if len(samples) // max(len(now), 1) % round(TOLD_EVERY_S / EVERY_S) == 0:
                    at_min = (time.monotonic() - began) / 60
                    used = ", ".join(f"{s.process} {s.rss_mb:.0f}" for s in now)
                    console.print(f"{at_min:5.1f} min  MB: {used}")
        out, _ = await calling
    return samples, json.loads(out)


def show(found: Sequence[Growth]) -> None:
    table = Table("process", "MB", "MB/h", "files", "steady", box=None)
    for one in found:
        files = f"{one.files_first} -> {one.files_last}"
        steady = "yes" if one.steady else "NO"
        table.add_row(one.process, f"{one.rss_mb:.1f}", f"{one.mb_per_hour:+.2f}", files, steady)
    console.print(table)


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=76, help="the most this machine holds (76)")
    parser.add_argument("--warm-up", type=float, default=20.0, help="minutes (20)")
    parser.add_argument("--checkpoint", default="demo", help="demo, tiny or instant (demo)")
    args = parser.parse_args()
    streams = max(1, round(SHARE * args.streams))
    FOLDER.mkdir(parents=True, exist_ok=True)
    console.print(f"{streams} callers for {args.minutes:g} minutes")
    samples, told = asyncio.run(soak(streams, args.minutes, args.checkpoint))
    found = growth(samples, 60 * args.warm_up)
    show(found)
    calls: list[Any] = told["calls"]
    failures = [call["failure"] for call in calls if call["failure"]]
    lost, doubled = (sum(call[name] for call in calls) for name in ("lost", "doubled"))
    result = {
        "minutes": args.minutes,
        "streams": streams,
        "checkpoint": args.checkpoint,
        "calls": len(calls),
        "failures": failures[:10],
        "lost": lost,
        "doubled": doubled,
        "processes": [asdict(one) | {"steady": one.steady} for one in found],
        "machine": machine.described(),
        "commit": machine.commit(),
    }
    print(json.dumps(result))
    return 0 if all(one.steady for one in found) and not (failures or lost or doubled) else 1


if __name__ == "__main__":
    sys.exit(main())
