"""
What gateway and worker cost by themselves, the models answering at once (instant.py).

    python bench/orchestration.py --streams 10 50 100 200 --seconds 30
    python bench/orchestration.py --streams 50 --seconds 20 --protocol openai elevenlabs

Both have work to do however few callers there are (wakes, rounds, heartbeats), so besides the cost
of a stream there is that of each further one.

--protocol: what callers cost who speak another service's protocol (dialects.py), over callers who
ask for the same in ours. Both call at one stack by turns: a machine is not equally fast from one
minute to the next.

Prints a table, and one JSON object last.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import dialects
import load
import machine
import served
from rich.table import Table
from slo import summary

from dalston.triton.process import dies_with_us

CALLERS = Path(dialects.__file__)
WARM_S = 5.0  # of a call before those that count

Turn = dict[str, float]  # what its callers noticed, and percent of a core for each stream


async def measured(streams: list[int], seconds: float) -> list[dict[str, Any]]:
    rows = list[dict[str, Any]]()
    fewer, less = 0, 0.0  # streams of the run before, and their percent of a core
    for count in sorted(set(streams)):
        # A new stack for each: what one run left in memory is no cost of the next.
        async with load.bench("instant", seconds, count + 2) as b:
            run = await b.run(count)
            told = summary(run, b.alone)
        all_of_them = count * run.core_percent("gateway", "worker")
        percent = told["core_percent_per_stream"]
        rows.append(
            {
                "streams": count,
                "gateway_core_percent": percent["gateway"],
                "worker_core_percent": percent["worker"],
                "core_percent": told["orchestration_core_percent_per_stream"],
                "each_further_core_percent": round((all_of_them - less) / (count - fewer), 2),
                "rss_mb": told["orchestration_rss_mb_per_stream"],
                "lost_finals": told["lost_finals"],
                "callers_late_p95_ms": told["generator_late_p95_ms"],
            }
        )
        fewer, less = count, all_of_them
    return rows


async def compared(
    protocols: list[str], streams: list[int], seconds: float, turns: int
) -> list[dict[str, Any]]:
    """Each protocol beside ours."""
    rows = list[dict[str, Any]]()
    for count in streams:
        async with served.running(load.FOLDER, "instant", count + 2) as stack:
            for protocol in protocols:
                await _turn(stack, protocol, count, WARM_S)
                taken = [
                    (
                        await _turn(stack, protocol, count, seconds, "--native"),
                        await _turn(stack, protocol, count, seconds),
                    )
                    for _ in range(turns)
                ]
                rows.append({"protocol": protocol, "streams": count, **_beside(taken)})
                load.console.print(rows[-1])
    return rows


def _beside(taken: list[tuple[Turn, Turn]]) -> dict[str, Any]:
    """Turns of ours and of theirs."""
    ours, theirs = ([pair[side] for pair in taken] for side in (0, 1))

    def median(of: list[Turn], name: str) -> float:
        return round(statistics.median(turn[name] for turn in of), 3)

    over = [100 * (b["core"] / a["core"] - 1) for a, b in taken]
    return {
        "native_core_percent": median(ours, "core"),
        "core_percent": median(theirs, "core"),
        "over_native_percent": round(statistics.median(over), 1),
        "each_turn": [round(each, 1) for each in over],
        "native_gateway_core_percent": median(ours, "gateway"),
        "gateway_core_percent": median(theirs, "gateway"),
        "finals": [int(sum(turn["finals"] for turn in of)) for of in (ours, theirs)],
        "failures": int(sum(turn["failures"] for turn in ours + theirs)),
        "callers_late_p95_ms": round(1000 * max(turn["late_p95_s"] for turn in ours + theirs), 1),
    }


async def _turn(
    stack: served.Stack, protocol: str, streams: int, seconds: float, *more: str
) -> Turn:
    """What the callers noticed, and percent of a core for each stream."""
    command = [sys.executable, str(CALLERS), "--url", stack.url, "--protocol", protocol]
    command += ["--streams", str(streams), "--seconds", str(seconds), *more]
    before = stack.usage()
    process = await asyncio.create_subprocess_exec(*dies_with_us(command), stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    used = stack.usage().since(before).core_s
    told = json.loads(out)
    percent = {role: 100 * used[role] / told["elapsed_s"] / streams for role in used}
    return {**told, "gateway": percent["gateway"], "core": percent["gateway"] + percent["worker"]}


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[10, 50, 100, 200])
    parser.add_argument("--seconds", type=float, default=30.0, help="of a call (30)")
    parser.add_argument(
        "--protocol", nargs="+", choices=dialects.DIALECTS, help="these over our own"
    )
    parser.add_argument("--turns", type=int, default=5, help="with --protocol, of each (5)")
    args = parser.parse_args()
    load.FOLDER.mkdir(parents=True, exist_ok=True)
    if args.protocol:
        rows = asyncio.run(compared(args.protocol, args.streams, args.seconds, args.turns))
    else:
        rows = asyncio.run(measured(args.streams, args.seconds))
    table = Table(box=None, title="per stream, models answering at once", title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{v:g}" if isinstance(v, float) else str(v) for v in row.values()))
    load.console.print(table)
    where = {"machine": machine.described(), "commit": machine.commit(), "seconds": args.seconds}
    print(json.dumps({"orchestration": rows, **where}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
