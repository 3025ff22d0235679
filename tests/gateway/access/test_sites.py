"""
Which pages may call, by which names: as a rule, and asked of a real gateway over sockets.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.fronted import STREAM, FakeWorker, echo, gateway_over

from dalston.gateway.access.keys import FileKeys, make
from dalston.gateway.access.sites import Sites
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.process.environment import SettingsError, from_environment

EVIL = "http://evil.example"


def sites(keyless: bool = True, **given: Any) -> Sites:
    fields: dict[str, Any] = {"redis_url": "redis://x", "allow_no_keys": True, **given}
    return Sites(GatewaySettings(**fields), keyless)


def lets(asked: Sites, host: str | None, origin: str | None = None, changes: bool = True) -> bool:
    hosts, origins = [[] if value is None else [value] for value in (host, origin)]
    return not asked.objection(hosts, origins, changes)


@pytest.mark.parametrize(
    ("host", "lets_in"),
    [
        ("localhost:8000", True),
        ("LOCALHOST.", True),
        ("app.localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("127.8.9.1", True),
        ("[::1]:8000", True),
        (None, True),  # HTTP/1.0, which no browser speaks
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.0.2.1:8000", True),
        ("", False),
        ("[::1", False),
        ("evil.example@localhost", True),  # its name is localhost
    ],
)
def test_without_keys_a_loopback_gateway_has_loopback_names_and_addresses_alone(
    host: str | None, lets_in: bool
) -> None:
    assert lets(sites(), host, changes=False) == lets_in


@pytest.mark.parametrize(
    ("origin", "lets_in"),
    [
        (None, True),
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:3000", True),
        (EVIL, False),
        ("http://localhost.evil.example", False),
        ("null", False),
        ("", False),
        ("chrome-extension://abc", False),
    ],
)
def test_without_keys_pages_of_this_machine_alone_may_call(
    origin: str | None, lets_in: bool
) -> None:
    assert lets(sites(), "localhost:8000", origin) == lets_in
    assert lets(sites(), "localhost:8000", origin, changes=False)  # it could not read the answer


def test_elsewhere_a_keyless_gateway_serves_pages_of_the_host_they_call() -> None:
    there = sites(host="0.0.0.0")
    assert lets(there, "speech.example:8000", "https://speech.example")
    assert lets(there, "192.0.2.1:8000")
    assert lets(there, "172.17.0.2:8000", changes=False)
    assert not lets(there, "localhost:8000", EVIL)


def test_with_keys_any_page_may_call_by_any_name() -> None:
    assert lets(sites(keyless=False), "speech.example", EVIL)


@pytest.mark.parametrize("keyless", [True, False])
def test_what_is_set_holds_with_keys_and_without(keyless: bool) -> None:
    asked = sites(
        keyless,
        host="0.0.0.0",
        allowed_hosts="speech.example, *.eu.example",
        allowed_origins="https://app.example,http://*.example:8080",
    )
    for host in ("speech.example", "Speech.Example:443", "a.eu.example", "b.a.eu.example"):
        assert lets(asked, host), host
    # Probes call by address, and nobody can make an address mean another machine.
    for host in ("10.1.2.3:8000", "[2001:db8::1]:8000", "localhost", "127.0.0.1"):
        assert lets(asked, host), host
    for host in ("eu.example", "speech.example.evil", "xspeech.example", ""):
        assert not lets(asked, host), host
    for origin in ("https://app.example", "https://APP.example:443", "http://x.example:8080"):
        assert lets(asked, "localhost", origin), origin
    for origin in (
        "http://app.example",
        "https://app.example:444",
        "https://app.example.evil",
        "http://x.example",
        "http://example:8080",
        "http://localhost",
        "null",
        "http://x.example:port",
    ):
        assert not lets(asked, "localhost", origin), origin


def test_a_star_is_any_and_null_has_to_be_said() -> None:
    any = sites(allowed_hosts="*", allowed_origins="*")
    assert lets(any, "evil.example", EVIL)
    assert lets(any, "evil.example", "null")
    files = sites(allowed_origins="null")
    assert lets(files, "localhost", "null")
    assert not lets(files, "localhost", EVIL)


def test_every_one_of_several_headers_has_to_be_right() -> None:
    assert sites().objection(["localhost", "evil.example"], [], False)
    assert sites().objection(["localhost"], ["http://localhost", EVIL], True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DALSTON_ALLOWED_HOSTS", ""),
        ("DALSTON_ALLOWED_HOSTS", "https://speech.example"),
        ("DALSTON_ALLOWED_HOSTS", "speech.example:8000"),
        ("DALSTON_ALLOWED_ORIGINS", ""),
        ("DALSTON_ALLOWED_ORIGINS", "app.example"),
        ("DALSTON_ALLOWED_ORIGINS", "https://app.example/"),
        ("DALSTON_TRUSTED_PROXIES", ""),
        ("DALSTON_TRUSTED_PROXIES", "proxy.example"),
        ("DALSTON_TRUSTED_PROXIES", "10.0.0.1/8"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://x")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: "):
        from_environment(GatewaySettings)


def test_the_name_that_trusted_proxies_had_is_not_ignored_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://x")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.1")
    with pytest.raises(SettingsError, match="FORWARDED_ALLOW_IPS.* set DALSTON_TRUSTED_PROXIES"):
        from_environment(GatewaySettings)
    monkeypatch.setenv("DALSTON_TRUSTED_PROXIES", "10.0.0.1,fd00::/8")
    assert from_environment(GatewaySettings).trusted_proxies == ["10.0.0.1", "fd00::/8"]


# Over sockets.

UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


async def answer(url: str, request: str, *lines: str) -> tuple[int, dict[str, Any]]:
    """The status of a request, written as it is given, and what stands in its body."""
    host, port = url.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write("\r\n".join((f"{request} HTTP/1.1", *lines, "", "")).encode())
    try:
        async with asyncio.timeout(5):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status = int(head.split()[1])
            length = [line for line in head.lower().split("\r\n") if "content-length" in line]
            if status == 101 or not length:
                return status, {}
            body = await reader.readexactly(int(length[0].split(":")[1]))
            return status, json.loads(body)
    finally:
        writer.close()


async def test_a_page_that_was_sent_here_is_refused_with_a_sentence(redis_url: str) -> None:
    async with gateway_over(redis_url) as gateway:
        foreign = await answer(gateway.url, f"GET {STREAM}", "Host: localhost", *UPGRADE)
        assert foreign[0] == 101
        page = ("Host: localhost", f"Origin: {EVIL}")
        for request, *lines in (
            (f"GET {STREAM}", *page, *UPGRADE),
            ("GET /elsewhere", *page, *UPGRADE),
            ("POST /v1/auth/token", *page),
            ("DELETE /v1/realtime/sessions/x", *page, "Authorization: Bearer secret"),
        ):
            status, body = await answer(gateway.url, request, *lines)
            assert status == 403
            assert "DALSTON_ALLOWED_ORIGINS" in body["detail"]
            assert body["request_id"].startswith("req_")
        for request in (f"GET {STREAM}", "GET /health", "GET /metrics", "GET /elsewhere"):
            lines = UPGRADE if STREAM in request else ()
            status, body = await answer(gateway.url, request, "Host: evil.example", *lines)
            assert status == 403
            assert "DALSTON_ALLOWED_HOSTS" in body["detail"]


async def test_a_probe_by_address_goes_on_working(redis_url: str, tmp_path: Path) -> None:
    await FileKeys(tmp_path / "keys").add(make("kiosk")[1])
    named: dict[str, Any] = {"allowed_hosts": "speech.example"}
    for more in ({}, named, named | {"api_keys": tmp_path / "keys"}):
        given: dict[str, Any] = {"host": "0.0.0.0", "allow_no_keys": True, **more}
        async with gateway_over(redis_url, **given) as gateway:
            url = gateway.url.replace("0.0.0.0", "127.0.0.1")
            for host in ("172.17.0.2:8000", "localhost:8000", "[2001:db8::1]:8000"):
                assert (await answer(url, "GET /health/live", f"Host: {host}"))[0] == 200


@pytest.mark.parametrize(
    ("trusted", "forwarded", "seen"),
    [
        ([], "203.0.113.7", "127.0.0.1"),
        (["10.0.0.0/8"], "203.0.113.7", "127.0.0.1"),
        (["127.0.0.1"], "203.0.113.7", "203.0.113.7"),
        (["127.0.0.0/8"], "198.51.100.1, 203.0.113.7", "203.0.113.7"),
    ],
)
async def test_where_a_caller_is_is_believed_of_those_proxies_alone_that_are_named(
    redis_url: str,
    trusted: Sequence[str],
    forwarded: str,
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*" if trusted else "")  # uvicorn's own
    async with gateway_over(redis_url, trusted_proxies=trusted) as gateway:
        async with FakeWorker(gateway.slots, "a", echo).running():
            stream = gateway.stream()
            stream.additional_headers = {"X-Forwarded-For": forwarded}
            async with stream as connection:
                await connection.recv()
                (session,) = await gateway.slots.sessions()
    assert (session["client_ip"], session["of_address"]) == (seen, seen)


async def test_callers_of_one_ipv6_network_are_counted_together(redis_url: str) -> None:
    given: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"], "sessions_per_address": 1}
    async with gateway_over(redis_url, **given) as gateway:
        async with FakeWorker(gateway.slots, "a", echo).running():

            async def first_word(address: str) -> Any:
                stream = gateway.stream()
                stream.additional_headers = {"X-Forwarded-For": address}
                return json.loads(await (await stream).recv())

            assert (await first_word("2001:db8:1:2::1"))["type"] == "session.begin"
            assert (await first_word("2001:db8:1:2:ffff::9"))["code"] == "rate_limit"
            assert (await first_word("2001:db8:1:3::1"))["type"] == "session.begin"
