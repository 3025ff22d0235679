"""
A real gateway that wants keys, over a real Redis: whom it lets in, whom it refuses, and how.
"""

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.guarded import (
    SECRET,
    STREAM,
    Gateway,
    Start,
    a_worker,
    added,
    begins,
    refused,
    settings,
)
from support.waiting import until
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from dalston.gateway.access.access import Access, AccessDenied, KeyHolder, check_resume
from dalston.gateway.access.keys import FileKeys, Key, RedisKeys, make, sha256
from dalston.gateway.access.secret_file import KeysError
from dalston.gateway.server import serve
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.slots import Slots, redis_client
from dalston.orchestrator.capacity.workers import Registration
from dalston.orchestrator.process.environment import SettingsError, from_environment
from dalston.orchestrator.protocol.introduction import NONCE_HEADER, PROOF_HEADER, introduced
from dalston.triton.process import dies_with_us, free_port

STATUS = "/v1/realtime/status"
SESSIONS = "/v1/realtime/sessions"


# API keys.


async def test_without_keys_everybody_is_let_in(start: Start) -> None:
    gateway = await start()
    async with gateway.stream() as stream:
        assert await begins(stream)
    # Clients of other servers always send one.
    async with gateway.stream(Authorization="Bearer whatever") as stream:
        assert await begins(stream)
    assert (await gateway.http(STATUS))[0] == 200


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {"Authorization": "Bearer {}"}),
        ("", {"authorization": "bearer  {}"}),
        ("", {"X_API_Key": "{}"}),
        ("", {"xi_api_key": "{}"}),
        ("", {"Authorization": "Token {}"}),
        ("language=en&api_key={}", {}),
        ("language=en&token={}", {}),
        # Of a proxy, and not for us.
        ("api_key={}", {"Authorization": "Basic Zm9vOmJhcg=="}),
    ],
)
async def test_a_key_is_taken_wherever_a_client_can_put_it(
    start: Start, query: str, headers: dict[str, str]
) -> None:
    gateway = await start(api_keys="redis")
    key, wrong = await added(gateway), make("nobody")[0]

    def stream(text: str) -> Any:
        filled = {name: value.format(text) for name, value in headers.items()}
        return gateway.stream(query.format(text), **filled)

    async with stream(key) as let_in:
        assert await begins(let_in)
    async with stream(wrong) as kept_out:
        error, code = await refused(kept_out)
    assert (error["code"], error["recoverable"], code) == ("unauthorized", False, 4001)
    assert wrong not in error["message"]


@pytest.mark.parametrize(
    ("path", "offered", "answered"),
    [
        (STREAM, ["dalston", "dalston.api-key.{}"], "dalston"),
        ("/v1/realtime", ["realtime", "openai-insecure-api-key.{}"], "realtime"),
        (
            "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000",
            ["token", "{}"],
            "token",
        ),
    ],
)
async def test_browsers_offer_keys_as_their_vendors_want_it(
    start: Start, path: str, offered: list[str], answered: str
) -> None:
    gateway = await start(api_keys="redis")

    def stream(key: str) -> Any:
        words = [Subprotocol(word.format(key)) for word in offered]
        return connect(f"ws://{gateway.url}{path}", subprotocols=words)

    with suppress(InvalidStatus, ConnectionClosed):
        async with stream("wrong") as kept_out:
            async for _ in kept_out:
                pass
    assert gateway.asked == []
    async with stream(await added(gateway)) as let_in:
        assert let_in.subprotocol == answered


async def test_a_browser_offers_its_key_as_a_subprotocol_and_is_answered_the_other(
    start: Start,
) -> None:
    gateway = await start(api_keys="redis")

    def stream(key: str) -> Any:
        offered = [Subprotocol("dalston"), Subprotocol(f"dalston.api-key.{key}")]
        return connect(f"ws://{gateway.url}{STREAM}", subprotocols=offered)

    async with stream(await added(gateway)) as let_in:
        assert await begins(let_in)
        assert let_in.subprotocol == "dalston"
    async with stream("wrong") as kept_out:
        assert (await refused(kept_out))[1] == 4001


async def test_no_key_is_refused_and_told_how_to_show_one(start: Start) -> None:
    gateway = await start(api_keys="redis")
    await added(gateway)
    for nothing in ({}, {"Authorization": "Bearer "}, {"X_API_Key": ""}):
        async with gateway.stream(**nothing) as stream:
            error, code = await refused(stream)
        assert (error["code"], code) == ("unauthorized", 4001)
        assert "Authorization: Bearer KEY" in error["message"]
    assert gateway.asked == []


async def test_nothing_but_the_whole_key_is_one(start: Start) -> None:
    gateway = await start(api_keys="redis")
    text, key = make("kiosk")
    await RedisKeys(gateway.client).add(key)
    for wrong in (key.sha256, key.id, text[:-1], text.upper(), f"{text}0"):
        async with gateway.stream(X_API_Key=wrong) as stream:
            assert (await refused(stream))[1] == 4001
    # One whose hash begins like that of a key that is kept is found, and is not it.
    alike = make("alike")[0]
    kept = sha256(alike)[:32] + 32 * "0"
    await RedisKeys(gateway.client).add(Key("half", kept))
    async with gateway.stream(X_API_Key=alike) as stream:
        assert (await refused(stream))[1] == 4001
    async with gateway.stream(X_API_Key=text) as stream:
        assert await begins(stream)


async def test_a_revoked_key_has_no_new_sessions_and_keeps_the_one_it_has(start: Start) -> None:
    gateway = await start(api_keys="redis")
    key = await added(gateway)
    async with gateway.stream(X_API_Key=key) as running:
        assert await begins(running)
        await RedisKeys(gateway.client).revoke("kiosk")
        async with gateway.stream(X_API_Key=key) as late:
            assert (await refused(late))[1] == 4001
        await (await running.ping())


async def test_an_expired_key_is_worth_nothing_and_the_session_it_began_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start(api_keys="redis")
    soon = datetime.now(UTC) + timedelta(hours=1)
    key = await added(gateway, expires=soon)
    async with gateway.stream(X_API_Key=key) as running:
        assert await begins(running)
        monkeypatch.setattr(time, "time", soon.timestamp)
        async with gateway.stream(X_API_Key=key) as late:
            error, code = await refused(late)
        assert (code, error["message"]) == (4001, "the API key has expired")
        assert (await gateway.http(STATUS, X_API_Key=key))[0] == 401
        await (await running.ping())


async def test_who_waits_while_their_key_is_revoked_does_not_get_a_slot(start: Start) -> None:
    gateway = await start(api_keys="redis", overflow="queue")
    slots, key = Slots(gateway.client), await added(gateway)
    (worker,) = await slots.workers()
    kinds = (["fast", "accurate"], ["demo"], ["en"])
    one = Registration("w", "w", worker.endpoint, "ready", 1, *kinds, "0.1.0")
    await slots.heartbeat(one, {})
    async with gateway.stream(X_API_Key=key) as first:
        assert await begins(first)
        async with gateway.stream(X_API_Key=key) as second:
            assert json.loads(await second.recv())["type"] == "session.queued"
            await RedisKeys(gateway.client).revoke("kiosk")
            await first.close()
            error, code = await refused(second)
            assert (code, error["message"]) == (4001, "the API key is revoked")
    assert await slots.sessions() == []
    assert len(gateway.asked) == 1


async def test_keys_of_a_file_come_and_go_with_it(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    file = FileKeys(path)
    first, key = make("first")
    await file.add(key)
    gateway = await start(api_keys=path)
    second, key = make("second")
    async with gateway.stream(X_API_Key=second) as stream:
        assert (await refused(stream))[1] == 4001
    await file.add(key)
    for text in (first, second):
        async with gateway.stream(X_API_Key=text) as stream:
            assert await begins(stream)
    await file.revoke("first")
    async with gateway.stream(X_API_Key=first) as stream:
        assert (await refused(stream))[1] == 4001


async def test_a_key_says_how_many_sessions_it_may_have(redis_url: str, tmp_path: Path) -> None:
    text, key = make("kiosk", sessions=2)
    await FileKeys(tmp_path / "keys").add(key)
    client = redis_client(redis_url)
    access = Access(settings(redis_url=redis_url, api_keys=tmp_path / "keys"), client)
    holder = await access.holder({"x-api-key": text}, {}, "stream")
    assert holder == KeyHolder("kiosk", 2, key.id)
    assert not access.open
    await client.aclose()


async def test_while_keys_cannot_be_checked_nobody_is_let_in_and_all_may_try_again(
    start: Start, redis_url: str
) -> None:
    # A Redis that is not there; and one that is, but has something else under that name.
    away = await start(api_keys="redis", redis_url=f"redis://127.0.0.1:{free_port()}")
    odd = await start(api_keys="redis")
    await odd.client.set("dalston:keys", "not a hash")
    for gateway in (away, odd):
        async with gateway.stream(X_API_Key="dk_1") as stream:
            error, code = await refused(stream)
        assert (error["code"], error["recoverable"], code) == ("no_capacity", True, 1013)
        assert error["retry_after"] == 5
        assert (await gateway.http(STATUS, X_API_Key="dk_1"))[0] == 503


async def test_a_broken_file_is_said_once_and_lets_nobody_in_until_it_is_mended(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    text, key = make("kiosk")
    await FileKeys(path).add(key)
    gateway, good = await start(api_keys=path), path.read_text()
    for broken in ("{", "\n["):
        path.write_text(broken)
        for _ in range(3):
            async with gateway.stream(X_API_Key=text) as stream:
                error, code = await refused(stream)
            assert (error["code"], code) == ("no_capacity", 1013)
            assert "cannot be checked" in error["message"]
    path.unlink()
    for _ in range(3):
        assert (await gateway.http(STATUS, X_API_Key=text))[0] == 503
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 3
    for line, why in zip(said, ("line 1", "line 2", "cannot be read"), strict=True):
        assert str(path) in line
        assert why in line
    path.write_text(good)
    async with gateway.stream(X_API_Key=text) as stream:
        assert await begins(stream)


async def test_status_wants_a_key_too_and_health_does_not(start: Start) -> None:
    gateway = await start(api_keys="redis")
    key = await added(gateway)
    status, body, headers = await gateway.http(STATUS)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "API key" in body["detail"]
    assert (await gateway.http(STATUS, Authorization="Bearer wrong"))[0] == 401
    status, body, _ = await gateway.http(STATUS, Authorization=f"Bearer {key}")
    assert (status, body["status"]) == (200, "ready")
    assert (await gateway.http("/health"))[0] == 200


def test_a_session_is_gone_on_with_by_its_own_key_alone() -> None:
    check_resume(KeyHolder("kiosk"), "kiosk")
    check_resume(KeyHolder(), "")
    for other in ("", "till"):
        with pytest.raises(AccessDenied, match="another API key") as refusal:
            check_resume(KeyHolder("kiosk"), other)
        error = refusal.value
        assert (error.code, error.status) == ("forbidden", 403)


async def test_a_gateway_does_not_start_without_the_keys_it_is_to_have(
    redis_url: str, tmp_path: Path
) -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        await serve(settings(redis_url=redis_url, api_keys=tmp_path / "missing"), asyncio.Event())


def test_an_empty_setting_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://x")
    for name in ("DALSTON_API_KEYS", "DALSTON_ADMIN_KEY", "DALSTON_WORKER_SECRET"):
        monkeypatch.setenv(name, "")
        with pytest.raises(SettingsError, match=f"^{name}: "):
            from_environment(GatewaySettings)
        monkeypatch.delenv(name)
    with pytest.raises(ValidationError):
        settings(redis_url="redis://x", worker_secret="two words")


def test_a_gateway_listens_to_this_machine_alone_unless_it_is_told() -> None:
    assert settings(redis_url="redis://x").host == "127.0.0.1"


@pytest.mark.parametrize("given", [{"host": "0.0.0.0"}, {"published": "192.168.1.7"}])
def test_the_world_is_let_in_only_where_that_is_meant(
    given: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="DALSTON_ALLOW_NO_KEYS=1 if that is meant"):
        settings(redis_url="redis://x", **given)
    settings(redis_url="redis://x", **given, allow_no_keys=True)
    settings(redis_url="redis://x", **given, api_keys=tmp_path / "keys")
    # A container listens to all its networks, and may be published to this machine alone.
    settings(redis_url="redis://x", host="0.0.0.0", published="127.0.0.1")


async def test_a_gateway_that_lets_the_world_in_says_so(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await start(host="0.0.0.0", allow_no_keys=True)
    assert "whoever reaches 0.0.0.0 is let in" in caplog.text
    caplog.clear()
    await FileKeys(tmp_path / "keys").add(make("kiosk")[1])
    await start(host="0.0.0.0", api_keys=tmp_path / "keys")
    assert "is let in" not in caplog.text


# The admin key.


async def test_without_an_admin_key_nobody_is_an_admin(start: Start) -> None:
    gateway = await start()
    for method, path in (("GET", SESSIONS), ("DELETE", f"{SESSIONS}/sess_x")):
        status, body, _ = await gateway.http(path, method, Authorization="Bearer ")
        assert status == 403
        assert "DALSTON_ADMIN_KEY" in body["detail"]


async def test_only_the_admin_key_makes_an_admin(start: Start) -> None:
    gateway = await start(api_keys="redis", admin_key="a-long-secret")
    key = await added(gateway)
    right = "Bearer a-long-secret"
    for method, path, answer in (("GET", SESSIONS, 200), ("DELETE", f"{SESSIONS}/sess_x", 404)):
        for wrong in ("", "Bearer", "Bearer a-long-secre", "a-long-secret"):
            status, _, headers = await gateway.http(path, method, Authorization=wrong)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await gateway.http(path, method, Authorization=f"Bearer {key}"))[0] == 403
        assert (await gateway.http(path, method, Authorization=right))[0] == answer
    # And it is no key for audio.
    async with gateway.stream(Authorization=right) as stream:
        assert (await refused(stream))[1] == 4001


async def test_an_admin_is_told_when_redis_is_away(start: Start) -> None:
    gateway = await start(admin_key="k", redis_url=f"redis://127.0.0.1:{free_port()}")
    for method, path in (("GET", SESSIONS), ("DELETE", f"{SESSIONS}/sess_x")):
        status, body, _ = await gateway.http(path, method, Authorization="Bearer k")
        assert status == 503
        assert body["detail"].startswith("Redis: ")


# Between gateway and worker.


async def test_the_worker_is_shown_neither_its_secret_nor_a_key(start: Start) -> None:
    gateway = await start(api_keys="redis", worker_secret=SECRET)
    key = await added(gateway)
    private = f"api_key={key}&session_id=sess_mine&epoch=9&resume=1&request_id=mine"
    async with gateway.stream(f"language=de&{private}", X_API_Key=key) as stream:
        assert await begins(stream)
    (request,), (query,) = gateway.asked, gateway.queries
    assert SECRET not in str(request)
    assert "Authorization" not in request.headers
    assert query["epoch"] == "1"
    assert query["session_id"] != "sess_mine"
    # A client may not hand a worker a snapshot.
    assert query.keys() == {"settings", "session_id", "epoch", "request_id"}
    assert key not in str(request)


@pytest.mark.parametrize("proof", [None, "", "1 2", "another's"])
async def test_who_only_registers_as_a_worker_is_told_nothing(
    redis_url: str, start: Start, caplog: pytest.LogCaptureFixture, proof: str | None
) -> None:
    told, shown = list[Any](), list[str]()
    elsewhere = "ws://127.0.0.1:1"

    def answer(_: ServerConnection, request: Request, response: Response) -> Response:
        shown.append(str(request))
        if proof == "another's":
            # It asks a real worker with the same number, and passes on what that says.
            real = introduced(SECRET, request.headers[NONCE_HEADER], elsewhere)
            assert real
            response.headers[PROOF_HEADER] = real.answer()
        elif proof is not None:
            response.headers[PROOF_HEADER] = proof
        return response

    async def listen(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            async for frame in connection:
                told.append(frame)

    gateway = await start(worker_secret=SECRET, outage_seconds=0.5)
    await gateway.client.flushall()
    async with serve_websocket(listen, "127.0.0.1", 0, process_response=answer) as server:
        endpoint = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        kinds = (["fast", "accurate"], ["demo"], ["en"])
        record = Registration("w", "w", endpoint, "ready", 8, *kinds, "0.1.0")
        await Slots(gateway.client).heartbeat(record, {})
        async with gateway.stream("prompt=private") as stream:
            await refused(stream)
        assert shown
        assert not told
        assert SECRET not in str(shown)
    assert "does not prove that it has our DALSTON_WORKER_SECRET" in caplog.text


async def test_without_a_secret_none_is_shown(start: Start) -> None:
    gateway = await start()
    async with gateway.stream(Authorization="Bearer dk_1") as stream:
        assert await begins(stream)
    assert "Authorization" not in gateway.asked[0].headers


# Request ids.


async def test_a_connection_has_an_id_which_the_worker_is_told(start: Start) -> None:
    gateway = await start()
    async with gateway.stream() as stream:
        assert await begins(stream)
        async with gateway.stream(X_Request_ID="call-7:a") as other:
            assert await begins(other)
            ids = [c.response.headers["X-Request-ID"] for c in (stream, other)]
    assert ids[0].startswith("req_")
    assert ids[1] == "call-7:a"
    assert [query["request_id"] for query in gateway.queries] == ids


@pytest.mark.parametrize("id", ["", "two words", "x" * 129, "<script>", "ü"])
async def test_an_id_that_is_not_sane_is_replaced(start: Start, id: str) -> None:
    gateway = await start()
    _, _, headers = await gateway.http("/health", X_Request_ID=id)
    assert headers["X-Request-ID"].startswith("req_")


async def test_every_refusal_names_its_request(start: Start) -> None:
    gateway = await start(api_keys="redis", admin_key="k")
    key = await added(gateway)
    for query in (f"api_key={key}&sample_rate=1", ""):
        async with gateway.stream(query) as stream:
            error, _ = await refused(stream)
            assert stream.response
            assert error["request_id"] == stream.response.headers["X-Request-ID"] != ""
    async with connect(f"ws://{gateway.url}/elsewhere") as stream:
        error, _ = await refused(stream)
        assert stream.response
        assert error["request_id"] == stream.response.headers["X-Request-ID"]
    for path, expected in ((STATUS, 401), (SESSIONS, 401), ("/elsewhere", 404)):
        status, body, headers = await gateway.http(path, X_Request_ID="mine")
        assert (status, body["request_id"], headers["X-Request-ID"]) == (expected, "mine", "mine")


# Logs.


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
async def test_logs_name_sessions_and_requests_and_no_secrets(
    redis_url: str, tmp_path: Path, level: str
) -> None:
    client: Any = redis_client(redis_url)
    await client.flushall()
    text, key = make("kiosk")
    await RedisKeys(client).add(key)
    port = free_port()
    environment = {
        "REDIS_URL": redis_url,
        "DALSTON_PORT": str(port),
        "DALSTON_API_KEYS": "redis",
        "DALSTON_ADMIN_KEY": "the-admin-key",
        "DALSTON_WORKER_SECRET": "the-worker-secret",
        "DALSTON_LOG_FORMAT": "json",
        "LOG_LEVEL": level,
    }
    dead = f"ws://127.0.0.1:{free_port()}"
    kinds = (["fast", "accurate"], ["demo"], ["en"])
    await Slots(client).heartbeat(Registration("w", "w", dead, "ready", 8, *kinds, "0.1.0"), {})
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *dies_with_us([sys.executable, "-m", "dalston.cli.main", "gateway"]),
            env=os.environ | environment,
            stderr=file,
        )

    def unreached() -> int:
        return log.read_bytes().count(b"worker w at")

    try:
        gateway = Gateway(f"127.0.0.1:{port}", client, [])
        await until(lambda: b"listens at" in log.read_bytes(), within_s=20)
        async with gateway.stream(f"api_key={text}", X_Request_ID="first-call"):
            await until(unreached)
        async with (
            a_worker(Slots(client), "the-worker-secret"),
            gateway.stream(f"api_key={text}") as stream,
        ):
            assert await begins(stream)
        before = unreached()
        async with gateway.stream(Authorization=f"Bearer {text}"):
            await until(lambda: unreached() > before)
        await gateway.http(SESSIONS, Authorization="Bearer the-admin-key")
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)
        await client.aclose()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    about = [line for line in lines if line.get("request_id") == "first-call"]
    assert any(line.get("session_id", "").startswith("sess_") for line in about)
    for secret in (text, "the-admin-key", "the-worker-secret"):
        assert secret not in log.read_text()
