"""
A real gateway over a real Redis, in front of workers that do what the test wants.
"""

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed

from dalston.gateway.app import Protocols
from dalston.gateway.protocols import PROTOCOLS
from dalston.gateway.server import serve
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.slots import Slots, redis_client
from dalston.orchestrator.capacity.workers import Registration
from support.registered import BEGIN, snapshot

STREAM = "/v1/audio/transcriptions/stream"
Script = Callable[[ServerConnection], Awaitable[None]]


@dataclass
class FakeWorker:
    """Registered like a real one; what it does with a connection is the test's."""

    slots: Slots
    id: str
    script: Script
    capacity: int = 4
    fast_share: float = 1.0
    requests: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["FakeWorker"]:
        async def serve_one(connection: ServerConnection) -> None:
            assert connection.request is not None
            url = urlsplit(connection.request.path)
            assert url.path == "/session"
            self.requests.append(dict(parse_qsl(url.query)))
            if "settings" in self.requests[-1]:
                self.requests[-1]["config"] = str(await connection.recv())
            with contextlib.suppress(ConnectionClosed):
                await self.script(connection)

        async with serve_websocket(
            serve_one, "127.0.0.1", 0, max_size=16 << 20, close_timeout=0.5, ping_interval=None
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            await self.register(f"ws://127.0.0.1:{port}")
            yield self

    async def register(self, endpoint: str) -> None:
        await self.slots.heartbeat(
            Registration(
                self.id,
                self.id,
                endpoint,
                "ready",
                self.capacity,
                ["fast", "accurate"],
                ["demo"],
                ["en"],
                "0.1.0",
                fast_share=self.fast_share,
            ),
            {},
        )


async def echo(connection: ServerConnection) -> None:
    """Begins, tells the size of each binary frame, ends when told to."""
    await connection.send(BEGIN)
    async for frame in connection:
        if isinstance(frame, bytes):
            await connection.send(json.dumps({"type": "got", "bytes": len(frame)}))
        elif json.loads(frame)["type"] == "end":
            await connection.send(snapshot(1))
            await connection.send(json.dumps({"type": "session.end", "said": json.loads(frame)}))
            await connection.close(1000)


@dataclass
class Gateway:
    url: str
    slots: Slots
    client: Any
    stop: asyncio.Event
    task: asyncio.Task[None]

    def stream(self, query: str = "") -> Any:
        return connect(f"ws://{self.url}{STREAM}?{query}", compression=None, max_size=None)

    async def http(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://{self.url}{path}", method=method, headers=headers or {}
        )

        def fetch() -> tuple[int, Any]:
            try:
                with urllib.request.urlopen(request, timeout=5) as response:
                    return response.status, json.load(response)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)

        return await asyncio.to_thread(fetch)

    async def held(self) -> int:
        """Slots in Redis."""
        return sum(worker.active_sessions for worker in await self.slots.workers())

    async def until_held(self, count: int) -> None:
        async with asyncio.timeout(5):
            while await self.held() != count:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway_over(
    redis_url: str, protocols: Protocols = PROTOCOLS, **settings: Any
) -> AsyncGenerator[Gateway]:
    """An empty Redis, and a gateway that has little patience."""
    client: Any = redis_client(redis_url)
    await client.flushall()
    given: dict[str, Any] = {
        "redis_url": redis_url,
        "host": "127.0.0.1",
        "port": 0,
        "drain_seconds": 1.0,
        "outage_seconds": 1.0,
        "admin_key": "secret",
        **settings,
    }
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(GatewaySettings(**given), stop, port.set_result, protocols))
    url = f"127.0.0.1:{await port}"
    try:
        yield Gateway(url, Slots(client), client, stop, task)
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)
        await client.aclose()


async def drained(connection: ClientConnection) -> tuple[list[Any], int | None]:
    """All that comes until the close, and its code."""
    messages: list[Any] = []
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                messages.append(json.loads(await connection.recv()))
    return messages, connection.close_code
