"""
Whisper models that nobody uses leave memory, and callers who come then lose nothing.
"""

import asyncio
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from recordings import recordings
from support.stack import Stack, start_stack

from dalston import client

AUDIO = recordings()[0].audio[: 4 * 16_000]
CHUNK = 1600
UNLOAD_AFTER_S = 2.0


@pytest.fixture(scope="module")
def sleepy(data_dir: Path) -> Generator[Stack]:
    """Two workers of one session each, which share a Triton."""
    after = str(UNLOAD_AFTER_S)
    stack = start_stack(data_dir, 2, MAX_SESSIONS="1", DALSTON_UNLOAD_AFTER_SECONDS=after)
    yield stack
    os.killpg(stack.process.pid, signal.SIGKILL)
    stack.process.wait(10)


def stubs(stack: Stack, model: str) -> list[psutil.Process]:
    """The processes that have a model in their memory."""
    found = list[psutil.Process]()
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        try:
            if f"/{model}/1/model.py" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found


def until_asleep(stack: Stack) -> None:
    """Until workers say so, and no process is left."""
    deadline = time.monotonic() + 30
    while True:
        body = stack.http("/health/extended")[1]
        said = [worker["asleep"] for worker in body["workers"]]
        left = stubs(stack, "whisper_fast") + stubs(stack, "whisper_accurate")
        if said == [["accurate", "fast"]] * 2 and not left:
            return
        assert time.monotonic() < deadline, (said, left)
        time.sleep(0.1)


async def heard(stack: Stack) -> tuple[list[dict[str, Any]], str]:
    """What a caller is warned of, and the finals; everything is said in real time."""
    async with client.connect(stack.url, language="en") as session:

        async def send() -> None:
            for start in range(0, len(AUDIO), CHUNK):
                await session.send(AUDIO[start : start + CHUNK].tobytes())
                await asyncio.sleep(0.1)
            await session.end()

        sending = asyncio.create_task(send())
        events = [event async for event in session]
        await sending
    finals = [event["text"] for event in events if event["type"] == "transcript.final"]
    return [event for event in events if event["type"] == "warning"], " ".join(finals)


async def test_an_idle_model_leaves_memory_and_comes_back_for_callers_of_both_workers(
    sleepy: Stack,
) -> None:
    triton = [p for p in psutil.Process(sleepy.process.pid).children() if "triton" in p.cmdline()]
    _, said = await heard(sleepy)
    assert said
    await asyncio.to_thread(until_asleep, sleepy)
    assert sleepy.http("/health")[0] == 200
    assert stubs(sleepy, "silero_vad")
    # One of each worker at the same time.
    callers = await asyncio.gather(heard(sleepy), heard(sleepy))
    for warnings, text in callers:
        assert [warning["code"] for warning in warnings] == ["model_loading"]
        assert text == said
    # Nobody asked for the other, and what was not there was not mistaken for dead.
    assert not stubs(sleepy, "whisper_accurate")
    log = (sleepy.data_dir / "run" / "triton.log").read_text()
    assert "is dead" not in log
    assert log.count("whisper_fast is loaded again") == 1
    assert all(process.is_running() for process in triton)
    await asyncio.to_thread(until_asleep, sleepy)


async def test_who_speaks_again_when_the_model_has_gone_loses_no_word(sleepy: Stack) -> None:
    await asyncio.to_thread(until_asleep, sleepy)
    pause = bytes(2 * CHUNK)
    async with client.connect(sleepy.url, language="en") as session:

        async def send() -> None:
            while not stubs(sleepy, "whisper_fast"):
                await session.send(pause)
                await asyncio.sleep(0.1)
            for again in (True, False):
                for start in range(0, len(AUDIO), CHUNK):
                    await session.send(AUDIO[start : start + CHUNK].tobytes())
                    await asyncio.sleep(0.1)
                while again and stubs(sleepy, "whisper_fast"):
                    await session.send(pause)
                    await asyncio.sleep(0.1)
            await session.end()

        sending = asyncio.create_task(send())
        events = [event async for event in session]
        await sending
    finals = [event["text"] for event in events if event["type"] == "transcript.final"]
    half = len(finals) // 2
    assert finals
    assert finals[:half] == finals[half:]
    codes = [event["code"] for event in events if event["type"] == "warning"]
    assert codes == ["model_loading"] * 2
