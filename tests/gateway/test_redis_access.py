"""
Redis with a password, a user of its own, TLS or a Unix socket; and nobody is told the password.
"""

import asyncio
import contextlib
import logging
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from support.fronted import FakeWorker, drained, echo, gateway_over
from support.redis_process import redis_process
from support.registered import register, served, worker

from dalston.gateway.access.keys import RedisKeys, make
from dalston.gateway.app import Gateway
from dalston.gateway.listeners import CHANNEL
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.redis_client import UnsupportedRedis, redis_client
from dalston.orchestrator.capacity.slots import Slots
from dalston.orchestrator.worker.settings import WorkerSettings
from dalston.triton.process import free_port

PASSWORD = "p@ss:w/rd#1%"
QUOTED = "p%40ss%3Aw%2Frd%231%25"
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


async def a_call(url: str, **settings: Any) -> None:
    """The whole of one, and what pages ask."""
    async with gateway_over(url, **settings) as gateway:
        key = ""
        if settings.get("api_keys"):
            text, made = make("one", 1)
            await RedisKeys(gateway.client).add(made)
            key = f"api_key={text}&overflow=queue"
        async with FakeWorker(gateway.slots, "a", echo).running():
            async with gateway.stream(key) as stream:
                await stream.recv()
                await gateway.slots.sessions()
                await gateway.slots.expire()
                await stream.send('{"type":"end"}')
                assert (await drained(stream))[1] == 1000
            assert (await gateway.http("/health"))[0] == 200
        await gateway.slots.unregister("a", "a")


async def test_a_password_with_signs_is_written_in_percents(tmp_path: Path) -> None:
    with redis_process(tmp_path, "--save", "", "--requirepass", PASSWORD) as redis:
        await a_call(f"redis://:{QUOTED}@127.0.0.1:{redis.port}/2")


async def test_a_unix_socket_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    options = ("--save", "", "--unixsocket", str(path), "--requirepass", "secret")
    with redis_process(tmp_path, *options):
        await a_call(f"unix://:secret@{path}?db=1")


@asynccontextmanager
async def tls_before(port: int, folder: Path) -> AsyncGenerator[tuple[int, Path]]:
    """A port with TLS before one without, and the certificate."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    await asyncio.to_thread(
        subprocess.run,
        [*made, *subject, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], certificate
    finally:
        server.close()


async def test_tls_and_a_certificate_that_is_checked(tmp_path: Path) -> None:
    with redis_process(tmp_path / "redis", "--save", "", "--requirepass", "secret") as redis:
        async with tls_before(redis.port, tmp_path) as (port, certificate):
            url = f"rediss://:secret@127.0.0.1:{port}/0"
            await a_call(f"{url}?ssl_ca_certs={certificate}")
            stranger: Any = redis_client(url)
            with pytest.raises(Exception, match="certificate verify failed"):
                await stranger.ping()
            await stranger.aclose()


def documented_user() -> list[str]:
    """What docs/operations.md says that a user needs."""
    (line,) = [
        line for line in OPERATIONS.read_text().splitlines() if line.startswith("ACL SETUSER ")
    ]
    return line.replace(">PASSWORD", ">secret").split()


async def test_the_user_in_the_documents_is_enough_for_everything_and_may_nothing_else(
    tmp_path: Path,
) -> None:
    with redis_process(tmp_path) as redis:
        admin: Any = redis_client(redis.url)
        await admin.execute_command(*documented_user())
        await admin.execute_command("ACL", "LOG", "RESET")
        user = documented_user()[2]
        url = f"redis://{user}:secret@127.0.0.1:{redis.port}/0"
        client: Any = redis_client(url)
        await all_there_is(client)
        refused = await admin.execute_command("ACL", "LOG")
        # The library tells its name too, and does not mind.
        assert [entry for entry in refused if entry[b"object"] != b"client"] == []
        for command in (
            ("FLUSHALL",),
            ("CONFIG", "GET", "dir"),
            ("SET", "another", "x"),
            ("KEYS", "*"),
            ("SAVE",),
        ):
            with pytest.raises(Exception, match="no permissions|NOPERM"):
                await client.execute_command(*command)
        await client.aclose()
        await admin.aclose()


async def all_there_is(client: Any) -> None:
    """Every operation of ours."""
    await client.ping()
    for strategy in ("least_loaded", "weighted"):
        slots = Slots(client, strategy)
        await register(slots, worker("a", 1, fast_share=0.5))
        slot = await slots.acquire("s1", "fast", {}, key_id="k", address="::1", key_limit=1)
        with contextlib.suppress(Exception):
            await slots.acquire("s2", "accurate", {}, ticket=True, degrade=True)
        await slots.leave("s2")
        await slots.keep("s1", slot.epoch, {"config": "{}"}, "k", whole=True)
        assert await slots.kept("s1")
        assert await slots.renew([slot]) == set()
        await slots.heartbeat(worker("a"), served(s1=slot.epoch))
        await slots.expire()
        await client.publish(f"{CHANNEL}CA1", "")
        for ask in (slots.workers, slots.sessions, slots.waiting, slots.server.may_come_back):
            await ask()
        await slots.is_active("s1")
        await slots.forget("s1")
        await slots.release("s1", slot.epoch, "ended")
        # A key of another kind is found and deleted.
        await client.delete("dalston:realtime:leases")
        await client.set("dalston:realtime:leases", "x")
        await slots.expire()
        reached = asyncio.Event()

        async def connected(reached: asyncio.Event = reached) -> None:
            reached.set()

        following = asyncio.create_task(slots.server.follow(connected))
        await asyncio.wait_for(reached.wait(), 5)
        await slots.server.announce({"type": "nothing"})
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await slots.unregister("a", "a-process")
    keys = RedisKeys(client)
    _, key = make("one", 1)
    await keys.add(key)
    assert [k.name for k in await keys.all()] == ["one"]
    assert await keys.find(key.sha256) == key
    assert await keys.revoke("one")


async def test_a_password_is_told_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis_process(tmp_path, "--save", "", "--requirepass", PASSWORD) as redis:
        wrong = f"redis://someone:wr0ngsecret@127.0.0.1:{redis.port}"
        gone = f"redis://someone:wr0ngsecret@127.0.0.1:{free_port()}"
        for url in (wrong, gone):
            told = repr(GatewaySettings(REDIS_URL=url))  # pyright: ignore[reportCallIssue]
            told += repr(WorkerSettings(REDIS_URL=url, WORKER_ID="w"))  # pyright: ignore[reportCallIssue]
            redis_url = f"redis://:{QUOTED}@127.0.0.1:{redis.port}"
            async with gateway_over(redis_url) as gateway:
                app: Gateway = gateway_of(url)
                for health in (app.slots.workers, app.slots.server.may_come_back):
                    with pytest.raises(RedisError) as error:
                        await health()
                    told += str(error.value) + repr(error.value)
                following = asyncio.create_task(app.slots.server.follow(app.calls.restore))
                async with asyncio.timeout(10):
                    while "Redis:" not in caplog.text:
                        await asyncio.sleep(0.02)
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                await app.redis.aclose()
                told += str(await gateway.http("/health"))
            assert "wr0ngsecret" not in told + caplog.text + "".join(capfd.readouterr())


def gateway_of(url: str) -> Gateway:
    return Gateway.of(GatewaySettings(REDIS_URL=url))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret/word@here:6379",
        "redis://:s3cret@here:port",
        "http://:s3cret@here",
        "redis+sentinel://user:s3cret/word@here:26379/speech",
        "redis+sentinel://user:s3cret@here:port/speech",
        "redis://[:s3cret@here",
        "redis+sentinel://[s3cret/here",
        "s3cret",
    ],
)
def test_an_address_that_cannot_be_read_is_not_quoted(url: str) -> None:
    with pytest.raises(UnsupportedRedis) as error:
        redis_client(url)
    assert "s3cret" not in str(error.value)
    assert "REDIS_URL" in str(error.value)


@pytest.mark.parametrize("policy", ["allkeys-lru", "noeviction"])
async def test_a_redis_that_may_throw_away_slots_is_warned_of(
    tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--save", "", "--maxmemory-policy", policy, "--rename-command", "CONFIG", "")
    with redis_process(tmp_path, *options) as redis:
        async with gateway_over(redis.url) as gateway:
            async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
                await stream.recv()
    assert ("maxmemory-policy is allkeys-lru" in caplog.text) == (policy == "allkeys-lru")
