"""
What gateway and worker cost by themselves, the models answering at once (instant.py).

    python bench/orchestration.py --streams 10 50 100 200 --seconds 30

Both have work to do however few callers there are (wakes, rounds, heartbeats), so besides the cost
of a stream there is that of each further one. Prints a table, and one JSON object last.
"""

import argparse
import asyncio
import json
import sys

import load
import machine
from rich.table import Table
from slo import summary


async def measured(streams: list[int], seconds: float) -> list[dict[str, float]]:
    rows = list[dict[str, float]]()
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


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[10, 50, 100, 200])
    parser.add_argument("--seconds", type=float, default=30.0, help="of a call (30)")
    args = parser.parse_args()
    rows = asyncio.run(measured(args.streams, args.seconds))
    table = Table(box=None, title="per stream, models answering at once", title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:g}" for value in row.values()))
    load.console.print(table)
    where = {"machine": machine.described(), "commit": machine.commit(), "seconds": args.seconds}
    print(json.dumps({"orchestration": rows, **where}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
