"""
`dalston up`: what it survives, and that it leaves nothing behind.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from recordings import recordings
from support.stack import Stack, start_stack
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from dalston import client
from dalston.triton.process import free_port


@contextlib.contextmanager
def _own(data_dir: Path) -> Generator[Stack]:
    stack = start_stack(data_dir, 1, MAX_SESSIONS="4", DRAIN_SECONDS="3")
    try:
        yield stack
    finally:
        if stack.process.poll() is None:
            os.killpg(stack.process.pid, signal.SIGKILL)
            stack.process.wait(10)


@pytest.fixture
def own(data_dir: Path) -> Generator[Stack]:
    """A stack to bring to its end."""
    with _own(data_dir) as stack:
        yield stack


@pytest.fixture(scope="module")
def mending(data_dir: Path) -> Generator[Stack]:
    """A stack to do harm to that it mends."""
    with _own(data_dir) as stack:
        yield stack


def family(stack: Stack) -> list[psutil.Process]:
    return psutil.Process(stack.process.pid).children(recursive=True)


def part(stack: Stack, words: str) -> psutil.Process:
    (found,) = [p for p in family(stack) if words in " ".join(p.cmdline())]
    return found


def gone(processes: list[psutil.Process]) -> None:
    """All of them, within the moments that the kernel takes."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert [p.cmdline() for p in alive] == []


def shared_memory(processes: list[psutil.Process]) -> list[str]:
    """What Triton's supervisor among them has in /dev/shm."""
    folder = Path("/dev/shm")
    return [path.name for p in processes for path in folder.glob(f"dalston_{p.pid}_*")]


def files(run: Path) -> list[str]:
    """Of a stack, beside its logs."""
    return [path.name for path in run.iterdir() if path.suffix != ".log"]


def until_healthy(stack: Stack) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if stack.http("/health")[0] == 200:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def transcribed(stack: Stack) -> str:
    async with client.connect(stack.url, language="en") as session:
        await session.send(recordings()[0].audio[:64_000].tobytes())
        await session.end()
        return [event async for event in session][-1]["transcript"]


async def test_an_idle_stack_stops_within_ten_seconds_and_leaves_nothing(own: Stack) -> None:
    assert await transcribed(own)
    processes = family(own)
    assert len(processes) >= 8  # Redis, Triton, its supervisor and stubs, worker, gateway
    assert shared_memory(processes)
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(10) == 0
    gone(processes)
    assert not shared_memory(processes)
    assert files(own.data_dir / "run") == ["triton"]  # the links that are its backend folder


async def test_everything_listens_to_this_machine_alone_and_workers_to_the_gateway(
    stack: Stack,
) -> None:
    listening = {
        (process.name(), connection.laddr)
        for process in family(stack)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    # gRPC has an IPv6 socket for the same.
    assert {address.ip for _, address in listening} == {"127.0.0.1", "::ffff:127.0.0.1"}
    # Three of Triton, two workers, the gateway and its port for Wyoming; Redis has none.
    assert len({address.port for _, address in listening}) == 7
    assert not any("redis" in name for name, _ in listening)
    refused = 0
    for worker in (p for p in family(stack) if "worker" in p.cmdline()):
        (connection,) = (c for c in worker.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
        with pytest.raises(InvalidStatus, match="401"):
            await connect(f"ws://127.0.0.1:{connection.laddr.port}/session")
        refused += 1
    assert refused == 2
    assert await transcribed(stack)


async def test_a_session_may_finish_while_the_stack_drains(own: Stack) -> None:
    async with client.connect(own.url, language="en") as session:
        await session.send(recordings()[0].audio[:64_000].tobytes())
        await asyncio.sleep(0.5)
        own.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        await session.end()
        end = [event async for event in session][-1]
    assert end["reason"] == "client_end"
    assert end["transcript"]
    assert await asyncio.to_thread(own.process.wait, 13) == 0


async def test_a_session_that_does_not_finish_is_ended_with_what_was_said(own: Stack) -> None:
    processes = family(own)
    async with client.connect(own.url, resume=False, language="en") as session:
        await session.send(recordings()[0].audio[:64_000].tobytes())
        await asyncio.sleep(0.5)
        own.process.send_signal(signal.SIGTERM)
        end = [event async for event in session][-1]
    assert end["reason"] == "server_drain"
    assert end["transcript"]
    assert await asyncio.to_thread(own.process.wait, 13) == 0
    gone(processes)


@pytest.mark.parametrize("words", ["redis-server", "worker", "gateway", "main triton"])
async def test_a_part_that_dies_is_started_again(mending: Stack, words: str) -> None:
    part(mending, words).kill()
    # Health must notice: it is about a new session, not about processes.
    await asyncio.sleep(0.3)
    until_healthy(mending)
    deadline = time.monotonic() + 30
    while True:
        try:
            assert await transcribed(mending)
            break
        except (client.SessionFailed, OSError):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


async def test_everything_dies_with_it(own: Stack) -> None:
    processes = family(own)
    own.process.kill()
    own.process.wait(5)
    gone(processes)


def test_a_port_that_is_taken_is_said_and_nothing_stays(data_dir: Path, mending: Stack) -> None:
    command = [sys.executable, "-m", "dalston.cli.main", "up", "--port", str(mending.port)]
    done = subprocess.run(
        [*command, "--data-dir", str(data_dir), "--profile", "demo"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"port {mending.port}" in done.stderr
    assert mending.http("/health")[0] == 200


def test_it_can_be_stopped_before_it_is_up(data_dir: Path) -> None:
    command = [sys.executable, "-m", "dalston.cli.main", "up", "--port", str(free_port())]
    process = subprocess.Popen([*command, "--data-dir", str(data_dir), "--profile", "demo"])
    time.sleep(1.5)
    processes = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
    gone(processes)


def test_an_unknown_profile_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dalston.cli.main", "up", "--profile", "huge"]
    done = subprocess.run(
        [*command, "--data-dir", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "huge" in done.stderr
