"""
Smaller storms than those of `make storms`: memory is bounded, honest callers hear the same, and a
hostile connection costs little more than an honest one.
"""

from pathlib import Path

import pytest
from hostile import KINDS
from storms import hostile, storms

# What a hundred sessions may take, with everything the kernel does not hold for them.
MORE_MB = 50


@pytest.mark.timeout(240)
async def test_storms_cost_little_memory_and_no_word(
    model_repository: Path, tmp_path: Path
) -> None:
    seen, broken = await storms(
        tmp_path, silent_count=60, unread_count=15, huge_count=4, lasting_s=8.0
    )
    assert broken == []
    for storm in seen:
        assert storm.calls > 0, storm.name
        assert storm.differences == 0, storm.name
        for name in ("gateway-1", "worker-1", "redis-1"):
            assert storm.peak[name] < storm.before[name] + MORE_MB, (storm.name, name)


# What a connection may take of a gateway: a burst of a minute, and what is read ahead.
EACH_MB = 16
# Processor time of a hostile connection as a multiple of an honest caller's. In a few seconds a
# burst counts most: a minute of audio is a minute's work. Without pacing there are hundreds.
TIMES = 60


@pytest.mark.timeout(300)
async def test_no_kind_of_connection_costs_much_more_than_an_honest_caller(
    tmp_path: Path,
) -> None:
    found, broken = await hostile(tmp_path, list(KINDS), connections=3, seconds=2.0)
    assert broken == []
    for cost in found:
        assert cost.mb < EACH_MB, cost
        assert cost.cores < TIMES, cost
