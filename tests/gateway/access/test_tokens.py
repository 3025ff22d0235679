"""
Tokens of keys: what they are good for, and what they are not, with keys in a file and in a real
Redis.
"""

import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dalston.gateway.access import tokens
from dalston.gateway.access.access import Access, AccessDenied, KeyHolder
from dalston.gateway.access.keys import FileKeys, RedisKeys, Scope, make
from dalston.gateway.access.secret_file import KeysError
from dalston.gateway.access.tokens import LONGEST_S, Claims, TokenRefused, issued, rotate
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.slots import redis_client

Keys = FileKeys | RedisKeys


@pytest.fixture(params=["file", "redis"])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, redis_url: str
) -> AsyncGenerator[tuple[Keys, Access]]:
    """Keys, and a gateway's access that looks there."""
    client: Any = redis_client(redis_url)
    await client.flushall()
    path = tmp_path / "keys"
    path.touch()
    where = path if request.param == "file" else "redis"
    fields: dict[str, Any] = {"redis_url": redis_url, "api_keys": where}
    access = Access(GatewaySettings(**fields), client)
    yield FileKeys(path) if request.param == "file" else RedisKeys(client), access
    await client.aclose()


async def shows(access: Access, token: str, scope: Scope = "stream") -> KeyHolder:
    return await access.holder({"authorization": f"Bearer {token}"}, {}, scope)


async def test_a_token_opens_what_its_key_would(place: tuple[Keys, Access]) -> None:
    keys, access = place
    _, key = make("kiosk", sessions=2)
    await keys.add(key)
    token, claims = await issued(keys, key)
    assert await shows(access, token) == KeyHolder("kiosk", 2, key.id)
    assert tokens.USUAL_S - 2 <= claims.expires - time.time() <= tokens.USUAL_S
    again, _ = await issued(keys, key)
    assert again != token
    # Wherever a key may stand.
    for headers, query in (
        ({"x-api-key": token}, {}),
        ({}, {"api_key": token}),
        ({"sec-websocket-protocol": f"dalston, dalston.api-key.{token}"}, {}),
    ):
        assert (await access.holder(headers, query, "stream")).key_id == "kiosk"


async def test_a_token_of_a_revoked_key_is_worth_nothing(place: tuple[Keys, Access]) -> None:
    keys, access = place
    _, key = make("kiosk")
    await keys.add(key)
    token, _ = await issued(keys, key)
    await keys.revoke("kiosk")
    # Nor is it one of another key with that name.
    await keys.add(make("kiosk")[1])
    with pytest.raises(AccessDenied, match="revoked") as denied:
        await shows(access, token)
    assert denied.value.code == "unauthorized"


async def test_a_token_ends(place: tuple[Keys, Access], monkeypatch: pytest.MonkeyPatch) -> None:
    keys, access = place
    _, key = make("kiosk")
    await keys.add(key)
    token, claims = await issued(keys, key, 30)
    monkeypatch.setattr(time, "time", lambda: claims.expires - 0.5)
    await shows(access, token)
    monkeypatch.setattr(time, "time", lambda: claims.expires)
    with pytest.raises(AccessDenied, match="the token has expired"):
        await shows(access, token)


async def test_a_token_has_no_more_rights_and_no_longer_life_than_its_key(
    place: tuple[Keys, Access],
) -> None:
    keys, access = place
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=20)
    _, key = make("kiosk", scopes=["stream", "read"], expires=expires)
    await keys.add(key)
    token, claims = await issued(keys, key, LONGEST_S, ["read"])
    assert claims.expires == expires.timestamp()
    await shows(access, token, "read")
    with pytest.raises(AccessDenied, match="a key with the scope 'stream'"):
        await shows(access, token)
    with pytest.raises(TokenRefused, match="no scope 'admin' to give; it has stream, read"):
        await issued(keys, key, 60, ["stream", "admin"])
    for seconds in (0, -1, LONGEST_S + 1):
        with pytest.raises(TokenRefused, match="1 to 3600 seconds"):
            await issued(keys, key, seconds)
    over = make("over", expires=datetime.now(UTC) - timedelta(seconds=1))[1]
    with pytest.raises(TokenRefused, match="has expired"):
        await issued(keys, over)


async def test_rights_that_a_key_has_lost_its_tokens_have_lost_too(
    place: tuple[Keys, Access],
) -> None:
    keys, access = place
    text, key = make("kiosk", scopes=["stream", "admin"])
    await keys.add(key)
    token, _ = await issued(keys, key, 60, ["admin"])
    await shows(access, token, "admin")
    await keys.revoke("kiosk")
    less = type(key)(key.name, key.sha256, scopes=("stream",))
    await keys.add(less)
    await shows(access, text, "stream")
    with pytest.raises(AccessDenied, match="the scope 'admin'"):
        await shows(access, token, "admin")


async def test_what_nobody_signed_is_no_token(place: tuple[Keys, Access]) -> None:
    keys, access = place
    _, key = make("kiosk")
    await keys.add(key)
    token, claims = await issued(keys, key)
    head, middle, signature = token.split(".")
    stranger = tokens.rotated(None, time.time(), at_once=True)
    forged = tokens.signed(stranger, claims)
    wrong = [
        "dt_",
        "dt_..",
        f"{head}.{middle}.",
        f"{head}.{middle}",
        f"{head}..{signature}",
        f"{head}.{middle}.{signature}x",
        f"{head}.{middle}x.{signature}",
        f"dt_00000000.{middle}.{signature}",
        f"{token}={'=' * 2000}",
        f"{head}.{middle}.ü",
        forged,
        f"{head}.{forged.split('.', 1)[1]}",
    ]
    for text in wrong:
        with pytest.raises(AccessDenied, match="the token is not known here"):
            await shows(access, text)
    await shows(access, token)


async def test_a_new_secret_lets_tokens_of_before_live_out_unless_it_is_to_end_them(
    place: tuple[Keys, Access],
) -> None:
    keys, access = place
    _, key = make("kiosk")
    await keys.add(key)
    first, _ = await issued(keys, key)
    await rotate(keys, at_once=False)
    second, _ = await issued(keys, key)
    assert first.split(".")[0] != second.split(".")[0]
    for token in (first, second):
        await shows(access, token)
    await rotate(keys, at_once=True)
    for token in (first, second):
        with pytest.raises(AccessDenied, match="not known"):
            await shows(access, token)


def test_a_secret_is_kept_for_as_long_as_a_token_can_live_and_no_longer() -> None:
    began = time.time()
    old = tokens.rotated(None, began, at_once=True)
    token = tokens.signed(old, Claims("k", ("stream",), int(began) + LONGEST_S, "1"))
    both = tokens.rotated(old, began + 9000, at_once=False)
    assert tokens.read(token, both, began + 9000 + LONGEST_S - 1)
    assert tokens.read(token, both, began + 9000 + LONGEST_S) is None
    # And is gone at the next.
    assert len(tokens.rotated(both, began + 20_000, at_once=False)) == len(both)


async def test_the_keys_alone_sign_nothing(tmp_path: Path) -> None:
    """Only hashes are in the file of keys, as before: it may be kept where it was kept."""
    path = tmp_path / "keys"
    keys = FileKeys(path)
    _, key = make("kiosk")
    await keys.add(key)
    before = path.read_bytes()
    path.chmod(0o640)
    await issued(keys, key)
    assert path.read_bytes() == before
    assert (tmp_path / "keys.signing").stat().st_mode & 0o777 == 0o640


async def test_a_broken_secret_is_said_and_lets_nobody_in(place: tuple[Keys, Access]) -> None:
    keys, access = place
    text, key = make("kiosk")
    await keys.add(key)
    token, _ = await issued(keys, key)
    await keys.change_signing(lambda _: b"{")
    with pytest.raises(AccessDenied, match="cannot be checked") as denied:
        await shows(access, token)
    assert denied.value.code == "no_capacity"
    with pytest.raises(KeysError, match="what tokens are signed with cannot be read"):
        await issued(keys, key)
    await shows(access, text)  # keys need no secret
