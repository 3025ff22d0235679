"""
examples/tls: Caddy reads the file, a client streams through it, and Compose takes what is added.
"""

import asyncio
import json
import os
import ssl
import subprocess
import sysconfig
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from support.compose_file import COMPOSE, is_valid
from support.fronted import STREAM, FakeWorker, Gateway, echo
from support.waiting import until
from websockets.asyncio.client import connect

from dalston.triton.process import dies_with_us, free_port

TLS = Path(__file__).parents[2] / "examples" / "tls"
CADDY = Path(sysconfig.get_path("scripts")) / "caddy"
ROOT = "caddy/pki/authorities/local/root.crt"


def environment(folder: Path, **given: str) -> dict[str, str]:
    return os.environ | {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), **given}


def caddy(command: str, folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CADDY, command, "--adapter", "caddyfile", "--config", TLS / "Caddyfile"],
        capture_output=True,
        text=True,
        env=environment(folder, **given),
    )


def test_caddy_takes_the_file(tmp_path: Path) -> None:
    done = caddy("validate", tmp_path, DALSTON_DOMAIN="speech.example.org")
    assert done.returncode == 0, done.stderr
    assert "Valid configuration" in done.stdout + done.stderr


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / ROOT))


async def answering(port: int, folder: Path) -> None:
    """
    Returns once Caddy shakes hands. Its certificate lies on the disk some moments before Caddy
    serves it; until then Caddy refuses with an alert.
    """
    await until((folder / ROOT).exists, 20)
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("localhost", port, ssl=trusting(folder))
            except (OSError, ssl.SSLError):
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


@asynccontextmanager
async def before(gateway: Gateway, folder: Path) -> AsyncGenerator[int]:
    """Caddy with a certificate of its own for localhost; the port."""
    port, done = free_port(), caddy(
        "adapt", folder, DALSTON_DOMAIN="localhost", DALSTON_GATEWAY=gateway.url
    )  # fmt: skip
    config: dict[str, Any] = json.loads(done.stdout)
    (server,) = config["apps"]["http"]["servers"].values()
    server |= {"listen": [f"127.0.0.1:{port}"], "automatic_https": {"disable_redirects": True}}
    config["apps"]["pki"] = {"certificate_authorities": {"local": {"install_trust": False}}}
    (folder / "config.json").write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        *dies_with_us([str(CADDY), "run", "--config", str(folder / "config.json")]),
        env=environment(folder),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await answering(port, folder)
        yield port
    finally:
        process.kill()
        await process.wait()


async def test_a_client_streams_through_it(gateway: Gateway, tmp_path: Path) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), before(gateway, tmp_path) as port:
        trusted = trusting(tmp_path)
        async with connect(f"wss://localhost:{port}{STREAM}", ssl=trusted) as stream:
            assert json.loads(await stream.recv())["type"] == "session.begin"
            await stream.send(bytes(3200))
            assert json.loads(await stream.recv())["bytes"] == 3200
        trusted.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection("localhost", port, ssl=trusted)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        writer.close()
        for path, status in {
            "/health": "200",
            "/metrics": "404",
            "/health/extended": "404",
        }.items():
            trusted.set_alpn_protocols(["http/1.1"])
            reader, writer = await asyncio.open_connection("localhost", port, ssl=trusted)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert (await reader.readline()).decode().split()[1] == status, path
            writer.close()


def test_what_is_added_to_compose_fits() -> None:
    assert is_valid(TLS / "compose.yml")
    whole, added = (yaml.safe_load(p.read_text("utf-8")) for p in (COMPOSE, TLS / "compose.yml"))
    assert added["services"].keys() - whole["services"].keys() == {"caddy"}
    assert added["networks"].keys() <= whole["networks"].keys()
    caddy, gateway = added["services"]["caddy"], added["services"]["gateway"]
    assert caddy["networks"].keys() == {"front"}
    assert (caddy["read_only"], caddy["cap_drop"]) == (True, ["ALL"])
    # Everybody reaches the gateway by that name, so it wants keys; and it believes Caddy alone.
    assert gateway["environment"]["DALSTON_PUBLISHED"] == caddy["environment"]["DALSTON_DOMAIN"]
    address = caddy["networks"]["front"]["ipv4_address"]
    assert gateway["environment"]["DALSTON_TRUSTED_PROXIES"] == address
    assert "./examples/tls/Caddyfile:/etc/caddy/Caddyfile:ro" in caddy["volumes"]
