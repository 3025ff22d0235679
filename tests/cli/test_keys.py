"""
`dalston keys` as people type it, with keys in a file and in a real Redis.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from redis import Redis
from support.fronted import FakeWorker, drained, echo, gateway_over
from websockets.asyncio.server import ServerConnection, serve

from dalston.cli import main, options
from dalston.gateway.access.access import Access, AccessDenied
from dalston.gateway.access.keys import FileKeys, Scope, make, sha256
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.slots import redis_client
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
    if request.param == "--file":
        return [request.param, str(tmp_path / "keys")]
    with Redis.from_url(f"{redis_url}/1") as client:  # pyright: ignore[reportUnknownMemberType]
        client.flushdb()  # pyright: ignore[reportUnknownMemberType]
    return [request.param, f"{redis_url}/1"]


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


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`dalston keys` in this process: the exit status, and what was printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dalston", "keys", *arguments])
        try:
            status = main.main()
        except SystemExit as refused:
            status = int(refused.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_key_has_scopes_and_an_end_and_the_list_shows_them(
    place: list[str], keys: Command
) -> None:
    assert keys("create", "plain", *place)[0] == 0
    assert keys("create", "w", "--scopes", "read,admin", "--expires", "2130-01-31", *place)[0] == 0
    assert keys("add", "soon", "--expires", "90d", *place)[0] == 0
    head, *lines = (line.split() for line in keys("list", *place)[1].splitlines())
    assert head[:4] == ["NAME", "SESSIONS", "SCOPES", "EXPIRES"]
    shown = {line[0]: line[2:4] for line in lines}
    assert shown["plain"] == ["stream", "never"]
    assert shown["w"] == ["read,admin", "2130-01-31T00:00:00+00:00"]
    left = datetime.fromisoformat(shown["soon"][1]) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "a", "--expires", "soon"], "'soon' is no time, such as 90d or 2030-01-31"),
        (["add", "a", "--expires", "2020-01-31"], "is over already"),
        (["add", "a", "--expires", "0d"], "is over already"),
        (["add", "a", "--expires", "99999999999d"], "is no time"),
        (["add", "a", "--scopes", "fly"], "'fly' is none of stream, files, admin, read"),
        (["token", "a", "--scopes", ""], "'' is none of"),
    ],
)
def test_what_is_no_option_is_said(arguments: list[str], says: str, keys: Command) -> None:
    status, _, said = keys(*arguments, "--file", "keys")
    assert (status, says in said) == (2, True)


def test_the_scopes_of_the_command_are_those_of_keys() -> None:
    assert get_args(Scope) == options.SCOPES


def test_a_token_is_made_for_a_key_and_is_worth_nothing_after_a_rotation(
    place: list[str], redis_url: str, keys: Command
) -> None:
    async def name_of(token: str) -> str:
        where = Path(place[1]) if place[0] == "--file" else "redis"
        url = redis_url if place[0] == "--file" else place[1]
        client = redis_client(url)
        fields: dict[str, Any] = {"redis_url": url, "api_keys": where}
        try:
            access = Access(GatewaySettings(**fields), client)
            return (await access.holder({"x-api-key": token}, {}, "stream")).key_id
        except AccessDenied:
            return ""
        finally:
            await client.aclose()

    keys("add", "kiosk", *place)
    status, printed, said = keys("token", "kiosk", "--seconds", "30", *place)
    assert (status, "a token of kiosk, good until" in said) == (0, True)
    token = printed.strip()
    assert asyncio.run(name_of(token)) == "kiosk"
    assert keys("rotate", *place)[0] == 0
    assert asyncio.run(name_of(token)) == "kiosk"
    assert keys("rotate", "--at-once", *place)[0] == 0
    assert asyncio.run(name_of(token)) == ""
    for arguments, says in (
        (["nobody"], "there is no key named 'nobody'"),
        (["kiosk", "--scopes", "admin"], "has no scope 'admin' to give"),
        (["kiosk", "--seconds", "3601"], "1 to 3600 seconds"),
    ):
        status, printed, said = keys("token", *arguments, *place)
        assert (status, printed, says in said) == (1, "", True)


async def test_a_key_is_revoked_with_its_sessions(redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    texts = list[str]()
    for name in ("kiosk", "till"):
        text, key = make(name)
        await FileKeys(path).add(key)
        texts.append(text)
    async with gateway_over(redis_url, api_keys=path) as gateway:
        async with FakeWorker(gateway.slots, "a", echo).running():
            kiosk, till = [await gateway.stream(f"api_key={text}") for text in texts]
            for stream in (kiosk, till):
                assert json.loads(await stream.recv())["type"] == "session.begin"
            # One whose gateway is gone, which ends as well.
            await gateway.slots.acquire("sess_gone", "fast", {}, key_id="kiosk")
            revoke = ("revoke", "kiosk", "--end-sessions", "--file", str(path))
            nowhere = await asyncio.to_thread(dalston, *revoke)
            assert (nowhere.returncode, "set REDIS_URL" in nowhere.stderr) == (1, True)
            done = asyncio.create_task(asyncio.to_thread(dalston, *revoke, REDIS_URL=redis_url))
            messages, _ = await drained(kiosk)
            assert messages[-1]["said"] == {"type": "end", "reason": "terminated"}
            ended = await done
            assert ended.returncode == 0, ended.stderr
            assert "2 sessions were ended" in ended.stderr
            assert [s["of_key"] for s in await gateway.slots.sessions()] == ["till"]
            await till.close()


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


@pytest.mark.parametrize("how", ["option", "file", "environment"])
async def test_a_stream_shows_the_key_it_is_given(how: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("dk_1\n")
    asked = list[str]()

    async def close(connection: ServerConnection) -> None:
        assert connection.request
        asked.append(connection.request.headers["Authorization"])

    sample = Path(__file__).parents[2] / "demo" / "samples" / "00.wav"
    async with serve(close, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        ways = {"option": ("--api-key", "dk_1"), "file": ("--api-key-file", str(file))}
        option = ways.get(how, ())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dalston.cli.main", "stream", str(sample), "--url", url),
            *option,
            env=os.environ | ({} if option else {"DALSTON_API_KEY": "dk_1"}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await asyncio.wait_for(process.wait(), 30)
    assert asked == ["Bearer dk_1"]


@pytest.mark.parametrize(("text", "says"), [(None, "No such file"), ("\n", "is empty")])
def test_a_file_without_a_key_is_said(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "key"
    if text is not None:
        file.write_text(text)
    command = [sys.executable, "-m", "dalston.cli.main", "stream", "-", "--api-key-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
