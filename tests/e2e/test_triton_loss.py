"""
Callers of two Tritons, of which one dies, falls silent, or both do.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from recordings import recordings
from support.stack import Stack, start_stack

from dalston import client

AUDIO = recordings()[0].audio[: 8 * 16_000]
CHUNK = 1600


@pytest.fixture(scope="module")
def two(data_dir: Path) -> Generator[Stack]:
    stack = start_stack(data_dir, 1, tritons=2, MAX_SESSIONS="4", DRAIN_SECONDS="3")
    yield stack
    os.killpg(stack.process.pid, signal.SIGKILL)
    stack.process.wait(10)


@pytest.fixture(scope="module")
def undisturbed(two: Stack) -> list[str]:
    return asyncio.run(transcribed(two, []))


def tritonservers(stack: Stack) -> list[psutil.Process]:
    found = list[psutil.Process]()
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "bin/tritonserver" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def transcribed(
    stack: Stack, victims: list[psutil.Process], how: signal.Signals = signal.SIGKILL
) -> list[str]:
    """The finals, everything sent in real time; the victims get their signal in mid-speech."""
    async with client.connect(stack.url, language="en") as session:

        async def send() -> None:
            for start in range(0, len(AUDIO), CHUNK):
                await session.send(AUDIO[start : start + CHUNK].tobytes())
                await asyncio.sleep(0.1)
                if start == 20 * CHUNK:
                    for victim in victims:
                        victim.send_signal(how)
            await session.end()

        sending = asyncio.create_task(send())
        events = [event async for event in session]
        await sending
    return [event["text"] for event in events if event["type"] == "transcript.final"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("many", [1, 2])
async def test_the_finals_are_whole(
    two: Stack, undisturbed: list[str], many: int, how: signal.Signals
):
    assert undisturbed
    before = tritonservers(two)
    assert len(before) == 2
    async with asyncio.timeout(60):
        assert await transcribed(two, before[:many], how) == undisturbed
    # All come back: who fell silent is killed.
    async with asyncio.timeout(30):
        while len(tritonservers(two)) < 2 or set(tritonservers(two)) & set(before[:many]):
            await asyncio.sleep(0.1)
        while two.http("/health")[0] != 200:
            await asyncio.sleep(0.1)
