"""
API keys at rest, in a file and in a real Redis.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dalston.gateway.access.keys import REDIS_KEY, FileKeys, RedisKeys, make, sha256
from dalston.gateway.access.secret_file import KeysError
from dalston.orchestrator.capacity.slots import redis_client


@pytest.fixture(params=["file", "redis"])
async def keys(
    request: pytest.FixtureRequest, tmp_path: Path, redis_url: str
) -> AsyncGenerator[FileKeys | RedisKeys]:
    if request.param == "file":
        (tmp_path / "keys").touch()
        yield FileKeys(tmp_path / "keys")
        return
    client: Any = redis_client(redis_url)
    await client.flushall()
    yield RedisKeys(client)
    await client.aclose()


async def test_a_key_is_found_by_its_hash_until_it_is_revoked(keys: FileKeys | RedisKeys) -> None:
    text, key = make("kiosk", 3)
    await keys.add(key)
    assert await keys.find(sha256(text)) == key
    assert (key.name, key.sessions) == ("kiosk", 3)
    assert await keys.find(sha256("dk_other")) is None
    assert await keys.revoke("kiosk")
    assert await keys.find(sha256(text)) is None


async def test_a_key_that_is_not_there_cannot_be_revoked(keys: FileKeys | RedisKeys) -> None:
    await keys.add(make("kiosk")[1])
    assert not await keys.revoke("kiosk-2")
    assert [key.name for key in await keys.all()] == ["kiosk"]


async def test_a_name_is_given_once(keys: FileKeys | RedisKeys) -> None:
    await keys.add(make("kiosk")[1])
    with pytest.raises(KeysError, match="a key named 'kiosk' already"):
        await keys.add(make("kiosk")[1])


def test_of_those_who_change_a_file_at_once_each_finds_what_the_others_did(tmp_path: Path) -> None:
    def change(number: int) -> None:
        async def work() -> None:
            keys = FileKeys(tmp_path / "keys")
            for round in range(5):
                await keys.add(make(f"kiosk-{number}-{round}")[1])
            assert await keys.revoke(f"kiosk-{number}-0")

        asyncio.run(work())

    with ThreadPoolExecutor(8) as people:
        list(people.map(change, range(8)))
    assert len(asyncio.run(FileKeys(tmp_path / "keys").all())) == 8 * 4


async def test_of_two_who_add_a_name_at_once_one_succeeds(redis_url: str) -> None:
    client: Any = redis_client(redis_url)
    await client.flushall()
    keys = RedisKeys(client)
    adding = (keys.add(make("kiosk")[1]) for _ in range(5))
    done = await asyncio.gather(*adding, return_exceptions=True)
    assert sum(isinstance(answer, KeysError) for answer in done) == 4
    await client.aclose()


@pytest.mark.parametrize(
    ("name", "sessions"), [("", 0), ("a b", 0), ("x" * 65, 0), ("a\n", 0), ("kiosk", -1)]
)
def test_a_key_is_not_made_of_anything(name: str, sessions: int) -> None:
    with pytest.raises(KeysError, match="cannot be added"):
        make(name, sessions)


async def test_nothing_that_is_kept_is_a_key(tmp_path: Path, redis_url: str) -> None:
    text, key = make("kiosk")
    await FileKeys(tmp_path / "keys").add(key)
    client: Any = redis_client(redis_url)
    await client.flushall()
    await RedisKeys(client).add(key)
    kept = (tmp_path / "keys").read_bytes() + repr(await client.hgetall(REDIS_KEY)).encode()
    assert sha256(text).encode() in kept
    assert text.removeprefix("dk_").encode() not in kept
    await client.aclose()


def test_no_two_keys_are_alike() -> None:
    assert len({make("kiosk")[0] for _ in range(100)}) == 100


async def test_a_file_is_for_its_owner_and_stays_for_whom_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    await FileKeys(path).add(make("a")[1])
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    await FileKeys(path).add(make("b")[1])
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["keys"]


async def test_a_broken_file_names_the_line_and_no_key_of_before_is_left(tmp_path: Path) -> None:
    text, key = make("kiosk")
    path = tmp_path / "keys"
    await FileKeys(path).add(key)
    keys = FileKeys(path)
    keys.load()
    for broken in ("\n{", '{"name":"x","sha256":"abc"}', "{}"):
        path.write_text(broken)
        line = broken.count("\n") + 1
        with pytest.raises(KeysError, match=f"{path}, line {line}: "):
            await keys.find(sha256(text))
        with pytest.raises(KeysError, match="line"):
            FileKeys(path).load()
    path.unlink()
    with pytest.raises(KeysError, match="cannot be read"):
        await keys.find(sha256(text))
    await FileKeys(path).add(make("another")[1])
    assert await keys.find(sha256(text)) is None


async def test_what_a_key_may_do_and_until_when_is_kept(keys: FileKeys | RedisKeys) -> None:
    expires = datetime(2030, 1, 31, tzinfo=UTC)
    text, key = make("kiosk", scopes=["read", "admin"], expires=expires)
    await keys.add(key)
    found = await keys.find(sha256(text))
    assert found
    assert (found.scopes, found.expires) == (("read", "admin"), expires)
    assert not found.expired(expires.timestamp() - 1)
    assert found.expired(expires.timestamp())
    assert make("other")[1].scopes == ("stream",)
    for scopes in ([], ["fly"]):
        with pytest.raises(KeysError, match="cannot be added"):
            make("kiosk", scopes=scopes)


async def test_a_broken_record_in_redis_is_an_error(redis_url: str) -> None:
    client: Any = redis_client(redis_url)
    await client.flushall()
    await client.hset(REDIS_KEY, sha256("dk_1")[:16], "{")
    with pytest.raises(KeysError, match=REDIS_KEY):
        await RedisKeys(client).find(sha256("dk_1"))
    await client.aclose()
