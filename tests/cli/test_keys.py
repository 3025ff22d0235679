"""
`dalston keys` as people type it, with keys in a file and in a real Redis.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from dalston.gateway.access.keys import FileKeys, sha256
from dalston.triton.process import free_port


def dalston(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("REDIS", "DALSTON"))}
    return subprocess.run(
        [sys.executable, "-m", "dalston.cli.main", "keys", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | environment,
    )


@pytest.fixture(params=["--file", "--redis-url"])
def place(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> list[str]:
    """An empty one."""
    there = str(tmp_path / "keys") if request.param == "--file" else f"{redis_url}/1"
    return [request.param, there]


def test_a_key_is_made_listed_and_revoked(place: list[str]) -> None:
    made = dalston("add", "kiosk", "--sessions", "2", *place)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()  # the key alone, for scripts
    assert key.startswith("dk_")
    assert len(key) == 35
    listed = dalston("list", *place).stdout
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [["kiosk", "2"]]
    assert key not in listed
    again = dalston("add", "kiosk", *place)
    assert (again.returncode, again.stdout) == (1, "")
    assert "there is a key named 'kiosk' already" in again.stderr
    assert dalston("revoke", "kiosk", *place).returncode == 0
    gone = dalston("revoke", "kiosk", *place)
    assert gone.returncode == 1
    assert "there is no key named 'kiosk'" in gone.stderr


async def test_without_a_place_the_gateways_own_settings_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = dalston("add", "kiosk", DALSTON_API_KEYS=str(path), REDIS_URL="redis://x").stdout.strip()
    assert await FileKeys(path).find(sha256(key))
    nowhere = dalston("list")
    assert nowhere.returncode == 1
    assert "--file or --redis-url" in nowhere.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "two words", "--file", "keys"], "'two words' cannot be added"),
        (["add", "a", "--sessions", "-1", "--file", "keys"], "cannot be added"),
        (["list", "--file", "/nowhere/keys"], "/nowhere/keys cannot be read"),
        (["add", "a", "--file", "/nowhere/keys"], "/nowhere/keys cannot be written"),
        (["list", "--redis-url", f"redis://127.0.0.1:{free_port()}"], "Redis: "),
        (["list", "--redis-url", "localhost:6379"], "the Redis URL: "),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments: list[str], says: str) -> None:
    done = dalston(*arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["option", "environment"])
async def test_a_stream_shows_the_key_it_is_given(how: str) -> None:
    asked = list[str]()

    async def close(connection: ServerConnection) -> None:
        assert connection.request
        asked.append(connection.request.headers["Authorization"])

    sample = Path(__file__).parents[2] / "demo" / "samples" / "00.wav"
    async with serve(close, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        option = ("--api-key", "dk_1") if how == "option" else ()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dalston.cli.main", "stream", str(sample), "--url", url),
            *option,
            env=os.environ | ({} if option else {"DALSTON_API_KEY": "dk_1"}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await asyncio.wait_for(process.wait(), 30)
    assert asked == ["Bearer dk_1"]
