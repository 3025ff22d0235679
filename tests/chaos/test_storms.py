"""
Smaller storms than those of `make storms`: memory is bounded, honest callers hear the same.
"""

from pathlib import Path

import pytest
from storms import storms

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
        for name in ("gateway-1", "worker-1", "redis"):
            assert storm.peak[name] < storm.before[name] + MORE_MB, (storm.name, name)
