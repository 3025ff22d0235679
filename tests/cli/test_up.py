"""
How the parts of a stack are kept running. The whole stack: tests/e2e/test_up.py.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError
from support import waiting

from dalston.cli import up
from dalston.cli.up import HOPELESS, Part, StackError
from dalston.orchestrator.capacity.redis_client import redis_client


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


# --- what a stack is made of ----------------------------------------------------------------------


@contextlib.contextmanager
def stack(folder: Path, workers: int = 1) -> Generator[list[Part]]:
    """Its parts, none of which is started."""
    with up.listen("127.0.0.1") as listener:
        yield up.parts(folder / "models", folder / "run", listener, workers, 1.0)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def exists(path: Path) -> bool:
    return path.exists()


async def _redis(parts: list[Part]) -> Any:
    await parts[0].start()
    client: Any = redis_client(parts[-1].environment["REDIS_URL"])
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(Exception):
                await client.ping()
                return client
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", ["plain", "with space", "données", "long" * 40])
async def test_redis_is_a_socket_in_a_folder_that_is_its_users_alone(
    tmp_path: Path, name: str
) -> None:
    with stack(tmp_path / name) as parts:
        client = await _redis(parts)
        about = await client.info("server")
        assert about["tcp_port"] == 0
        path = Path(parts[0].command[parts[0].command.index("--unixsocket") + 1])
        assert mode(path.parent) == "0o700"
        assert mode(path) == "0o700"
        # What the stack needs works over it, and what would write files where it likes does not.
        assert await client.eval("return 1", 0) == 1
        for command in ("CONFIG GET dir", "SAVE", "DEBUG SLEEP 0", "MODULE LIST", "REPLICAOF a 1"):
            with pytest.raises(ResponseError, match="unknown command"):
                await client.execute_command(*command.split())
        await client.aclose()
        await parts[0].stop()
        assert not exists(path)
        assert path.parent == tmp_path / name / "run" or not exists(path.parent)


async def test_secrets_are_made_at_each_start_and_stand_in_no_command_line(tmp_path: Path) -> None:
    made = list[set[str]]()
    for name in ("one", "other"):
        with stack(tmp_path / name) as parts:
            lines = " ".join(word for part in parts for word in part.command)
            known = {
                part.environment[name]
                for part in parts
                for name in ("DALSTON_WORKER_SECRET", "DALSTON_TRITON_TOKEN")
                if name in part.environment
            }
            assert len(known) == 2
            assert not any(secret in lines for secret in known)
            made.append(known)
    assert not made[0] & made[1]


def test_a_port_that_somebody_has_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} of 127.0.0.1 cannot be had"):
            up.listen("127.0.0.1", port)


async def test_the_gateways_port_is_its_own_before_it_runs_and_while_it_is_started_again(
    tmp_path: Path,
) -> None:
    with stack(tmp_path) as parts:
        gateway = parts[-1]
        assert gateway.listener
        port = gateway.listener.getsockname()[1]
        assert str(port) == gateway.environment["DALSTON_PORT"]
        # It answers with what it was handed over: here, to who connected before it was there.
        program = (
            "import os, socket\n"
            "listener = socket.socket(fileno=int(os.environ['DALSTON_LISTENER']))\n"
            "there, _ = listener.accept()\n"
            "there.sendall(str(os.getpid()).encode())\n"
        )
        gateway.command = [sys.executable, "-c", program]
        for _ in range(2):
            with pytest.raises(StackError):
                up.listen("127.0.0.1", port)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await gateway.start()
            assert gateway.process
            assert await reader.read() == str(gateway.process.pid).encode()
            writer.close()
            await gateway.process.wait()
        await gateway.stop()
        up.listen("127.0.0.1", port).close()


def test_two_processes_that_choose_ports_at_once_choose_different_ones() -> None:
    program = (
        "import sys\n"
        "from dalston.triton.process import _PORTS, free_port\n"
        "from dalston.triton import process\n"
        "process._PORTS = range(29_000, 29_040)\n"
        "print(*(free_port() for _ in range(16)), flush=True)\n"
        "sys.stdin.read()\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ports = list[str]()
    for process in both:
        assert process.stdout
        ports += process.stdout.readline().split()
    for process in both:
        process.communicate("")
    assert len(ports) == len(set(ports)) == 32


@pytest.mark.parametrize("wrong", ["", "0", "-1", "much", "nan", "inf"])
def test_a_wrong_limit_of_logs_is_said_at_the_start(tmp_path: Path, wrong: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dalston.cli.main", "up", "--port", "0"]
        + ["--data-dir", str(tmp_path)],
        env=os.environ | {"DALSTON_LOG_MEGABYTES": wrong},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "DALSTON_LOG_MEGABYTES" in done.stderr
    assert not list(tmp_path.iterdir())


async def test_logs_of_a_stack_that_runs_are_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "LOOK_AT_LOGS_S", 0.01)
    monkeypatch.setenv("DALSTON_LOG_MEGABYTES", "0.01")
    talking = part(tmp_path, "while True: print('x' * 99, flush=True)")
    watching = asyncio.create_task(up._watch([talking], asyncio.Event()))  # pyright: ignore[reportPrivateUsage]
    older = tmp_path / "part.log.1"
    await waiting.until(lambda: older.exists() and older.stat().st_size, within_s=20)
    assert older.stat().st_size <= 5_000
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await talking.stop()
