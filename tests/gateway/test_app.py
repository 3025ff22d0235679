"""
The routes of a real gateway that wants keys: who may do what, however it is asked.
"""

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import WebSocketRoute
from support.guarded import STREAM, Start, added, begins, refused, settings
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from dalston.gateway.access.keys import RedisKeys, Scope, make, sha256
from dalston.gateway.access.tokens import issued
from dalston.gateway.app import Gateway, create_app, pages
from dalston.orchestrator.capacity.slots import Slots

STATUS = "/v1/realtime/status"
SESSIONS = "/v1/realtime/sessions"
PUBLIC = {"/health", "/health/live"}


async def test_what_a_key_may_do_is_what_its_scopes_say(start: Start) -> None:
    gateway = await start(api_keys="redis")
    keys = {scope: await added(gateway, scope, scopes=[scope]) for scope in get_args(Scope)}
    allowed = {
        ("GET", STATUS): {"stream", "read"},
        ("GET", "/ws/status"): {"stream", "read"},
        ("GET", SESSIONS): {"read"},
        ("GET", "/health/extended"): {"read"},
        ("DELETE", f"{SESSIONS}/sess_x"): {"admin"},
    }
    for (method, path), scopes in allowed.items():
        for scope, key in keys.items():
            status, body, _ = await gateway.http(path, method, X_API_Key=key)
            assert (status != 403) == (scope in scopes), (path, scope)
            if scope not in scopes:
                assert "needs a key with the scope" in body["detail"]
    for scope, key in keys.items():
        async with gateway.stream(X_API_Key=key) as stream:
            if scope == "stream":
                assert await begins(stream)
            else:
                error, code = await refused(stream)
                assert (error["code"], code) == ("forbidden", 4003)


async def test_a_key_that_was_kept_before_there_were_scopes_does_what_it_did(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(f'{{"name":"old","sha256":"{sha256("dk_old")}","sessions":0,"created":""}}\n')
    gateway = await start(api_keys=path)
    async with gateway.stream(X_API_Key="dk_old") as stream:
        assert await begins(stream)
    assert (await gateway.http(STATUS, X_API_Key="dk_old"))[0] == 200
    assert (await gateway.http(SESSIONS, X_API_Key="dk_old"))[0] == 403


# Tokens.


async def test_a_backend_has_a_token_made_and_a_browser_opens_with_it(start: Start) -> None:
    gateway = await start(api_keys="redis")
    key = await added(gateway, scopes=["stream", "read"])
    status, made, headers = await gateway.http(
        "/v1/auth/token", "POST", b'{"ttl_seconds":30,"scopes":["stream"]}', X_API_Key=key
    )
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=20) < left <= timedelta(seconds=30)
    assert made["scopes"] == ["stream"]
    offered = [Subprotocol("dalston"), Subprotocol(f"dalston.api-key.{made['token']}")]
    async with connect(f"ws://{gateway.url}{STREAM}", subprotocols=offered) as browser:
        assert await begins(browser)
        assert browser.subprotocol == "dalston"
    async with gateway.stream(f"api_key={made['token']}") as stream:
        assert await begins(stream)
    bearer = f"Bearer {made['token']}"
    assert (await gateway.http(SESSIONS, Authorization=bearer))[0] == 403
    # Without a body it is what a browser needs.
    _, made, _ = await gateway.http("/v1/auth/token", "POST", X_API_Key=key)
    assert made["scopes"] == ["stream"]


async def test_a_token_is_refused_with_a_sentence(start: Start) -> None:
    gateway = await start(api_keys="redis")
    key = await added(gateway)
    _, made, _ = await gateway.http("/v1/auth/token", "POST", X_API_Key=key)
    for body, shown, expected, says in (
        (b"", "", 401, "an API key is needed"),
        (b"", "dk_wrong", 401, "not known"),
        (b"", made["token"], 403, "not for other tokens"),
        (b'{"scopes":["admin"]}', key, 403, "has no scope 'admin' to give"),
        (b'{"scopes":["fly"]}', key, 400, "Invalid enum value 'fly'"),
        (b'{"scopes":[]}', key, 400, "of no use"),
        (b'{"ttl_seconds":3601}', key, 400, "1 to 3600 seconds"),
        (b'{"ttl":60}', key, 400, "unknown field `ttl`"),
        (b"{", key, 400, "the body: "),
        (b" " * 5000, key, 413, "4096 bytes at most"),
    ):
        status, answer, _ = await gateway.http("/v1/auth/token", "POST", body, X_API_Key=shown)
        assert (status, says in answer["detail"]) == (expected, True), answer
    keyless = await start()
    status, answer, _ = await keyless.http("/v1/auth/token", "POST")
    assert (status, "no API keys are set" in answer["detail"]) == (404, True)


async def test_a_session_is_gone_on_with_by_a_new_token_of_its_key(start: Start) -> None:
    gateway = await start(api_keys="redis")
    keys = RedisKeys(gateway.client)
    tokens = list[str]()
    for name in ("kiosk", "till"):
        _, key = make(name)
        await keys.add(key)
        tokens += [(await issued(keys, key))[0] for _ in range(2)]
    async with gateway.stream("ack=true", X_API_Key=tokens[0]) as stream:
        assert await begins(stream)
        (session,) = await Slots(gateway.client).sessions()
    id = session["session_id"]
    async with gateway.stream(f"ack=true&resume_session_id={id}", X_API_Key=tokens[2]) as other:
        error, code = await refused(other)
    assert (error["code"], code) == ("forbidden", 4003)
    async with gateway.stream(f"ack=true&resume_session_id={id}", X_API_Key=tokens[1]) as again:
        begin = json.loads(await again.recv())
    assert (begin["type"], begin["resumed_from"]) == ("session.begin", id)


# Routes.


async def test_every_route_that_is_not_public_needs_a_key(start: Start) -> None:
    gateway = await start(api_keys="redis")
    app = create_app(Gateway.of(settings(redis_url="redis://x")))
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    included = [route for route in pages.routes if isinstance(route, APIRoute)]
    assert {route.path for route in included} >= PUBLIC | {"/metrics", SESSIONS}
    for route in [*routes, *included]:
        path = route.path.replace("{session_id}", "sess_x")
        for method in route.methods or ():
            status = (await gateway.http(path, method))[0]
            assert (status == 200) == (path in PUBLIC), (method, path)
            assert status in (200, 401), (method, path)
    websockets = [r for r in app.routes if isinstance(r, WebSocketRoute | APIWebSocketRoute)]
    for path in {route.path for route in websockets} - {"/{path:path}"}:
        with contextlib.suppress(InvalidStatus, ConnectionClosed):
            async with connect(f"ws://{gateway.url}{path}") as stream:
                async for _ in stream:
                    pass
    assert gateway.asked == []


@pytest.mark.parametrize("path", ["/metrics", SESSIONS, "/health/extended", STATUS])
async def test_however_a_path_is_written_it_is_guarded(start: Start, path: str) -> None:
    gateway = await start(api_keys="redis", admin_key="k")
    encoded = f"/%{ord(path[1]):02x}{path[2:]}"
    name = path.rpartition("/")[2]
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"):
        for spelling in (
            path,
            encoded,
            encoded.upper(),
            path.upper(),
            f"/{path}",
            f"{path}/",
            f"{path}//",
            f"/v1/..{path}",
            f"/v1/%2e%2e{path}",
            f"/health/..{path}",
            f"{path}%00",
            f"{path};x=1",
            f"{path}?x=1",
            f"{path}#x",
            f"/health%2f..%2f{name}",
            f"{path}/%2e",
        ):
            status, headers = await asked(gateway.url, method, spelling)
            assert status in (401, 404, 405), (method, spelling)
            assert "location" not in headers
    assert (await asked(gateway.url, "GET", encoded))[0] == 401


async def asked(url: str, method: str, path: str) -> tuple[int, str]:
    """The status, and the head, of a request for a path as it is written here."""
    host, port = url.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {url}\r\nConnection: close\r\n\r\n".encode())
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode()
    writer.close()
    return int(head.split()[1]), head.lower()
