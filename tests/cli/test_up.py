"""
How the parts of a stack are kept running. The whole stack: tests/e2e/test_up.py.
"""

import asyncio
import sys
from pathlib import Path

import pytest

from dalston.cli import up
from dalston.cli.up import HOPELESS, Part, StackError


def part(folder: Path, program: str) -> Part:
    log = folder / "part.log"
    log.write_bytes(b"")
    return Part("part", [sys.executable, "-c", program], {}, log, 1.0)


def ends(folder: Path) -> int:
    return (folder / "ends").read_text().count("x") if (folder / "ends").exists() else 0


def ending(folder: Path) -> Part:
    """One that ends as soon as it has begun."""
    return part(folder, f"open({str(folder / 'ends')!r}, 'a').write('x'); print('it is broken')")


async def stopped(keeping: asyncio.Task[None], kept: Part) -> None:
    """It is still kept running; end that."""
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    if kept.process:
        await kept.process.wait()


async def test_a_part_that_never_worked_is_given_up_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "RESTART_FIRST_S", 0.01)
    with pytest.raises(StackError, match="it is broken"):
        await up._keep(ending(tmp_path), asyncio.Event())  # pyright: ignore[reportPrivateUsage]
    assert ends(tmp_path) == HOPELESS


async def test_a_stack_that_was_ready_is_never_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(up, "RESTART_LAST_S", 0.01)
    ready = asyncio.Event()
    ready.set()
    broken = ending(tmp_path)
    keeping = asyncio.create_task(up._keep(broken, ready))  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(30):
        while ends(tmp_path) <= HOPELESS + 1:
            await asyncio.sleep(0.05)
    await stopped(keeping, broken)


async def test_ends_that_are_far_apart_do_not_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "RESTART_FIRST_S", 0.01)
    monkeypatch.setattr(up, "RESTART_LAST_S", 0.01)
    monkeypatch.setattr(up, "SHORT_S", 0.0)  # every life was long enough
    broken = ending(tmp_path)
    keeping = asyncio.create_task(up._keep(broken, asyncio.Event()))  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(30):
        while ends(tmp_path) <= HOPELESS + 1:
            await asyncio.sleep(0.05)
    await stopped(keeping, broken)
