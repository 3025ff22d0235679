import asyncio
from pathlib import Path

import pytest

from dalston.orchestrator.process import heap

PIECE = 2000  # more than Python keeps by itself, less than has pages of its own


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def test_holes_between_what_stays_go_back_to_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heap, "TRIM_EVERY_S", 0.05)
    pieces = [bytes(PIECE) for _ in range(40_000)]
    pieces = pieces[::50]
    before = resident_mb()
    task = asyncio.create_task(heap.keep_trimmed())
    await asyncio.sleep(0.3)
    task.cancel()
    assert resident_mb() < before - 20, len(pieces)
