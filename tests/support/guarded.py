"""
A real gateway as a test sets it, over a real Redis and a worker that begins every session.
"""

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from dalston.gateway.access.keys import RedisKeys, make
from dalston.gateway.server import serve
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.capacity.slots import Registration, Slots, redis_client
from dalston.orchestrator.protocol.introduction import (
    NONCE_HEADER,
    PROOF_HEADER,
    Introduction,
    introduced,
)
from support.registered import BEGIN

STREAM = "/v1/audio/transcriptions/stream"
SECRET = "between-us"  # of gateway and worker


def settings(**given: Any) -> GatewaySettings:
    fields: dict[str, Any] = {"port": 0, "drain_seconds": 0.1, **given}
    return GatewaySettings(**fields)


@dataclass
class Gateway:
    url: str
    client: Any
    asked: list[Request]  # of the worker

    def stream(self, query: str = "", **headers: str) -> Any:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return connect(f"ws://{self.url}{STREAM}?{query}", additional_headers=given)

    async def http(
        self, path: str, method: str = "GET", data: bytes | None = None, **headers: str
    ) -> tuple[int, Any, Message]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"http://{self.url}{path}", data, method=method, headers=given
        )

        def fetch() -> tuple[int, Any, Message]:
            try:
                with urllib.request.urlopen(request, timeout=5) as got:
                    return got.status, json.load(got), got.headers
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error), error.headers

        return await asyncio.to_thread(fetch)

    @property
    def queries(self) -> list[dict[str, str]]:
        return [dict(parse_qsl(urlsplit(request.path).query)) for request in self.asked]


Start = Callable[..., Awaitable[Gateway]]


@asynccontextmanager
async def a_worker(slots: Slots, secret: str = SECRET) -> AsyncGenerator[list[Request]]:
    """Registered; begins every session that it is asked for, if it is by who has its secret."""
    asked = list[Request]()
    known = dict[ServerConnection, Introduction]()

    def answer(connection: ServerConnection, request: Request, response: Response) -> Response:
        if number := request.headers.get(NONCE_HEADER):
            introduction = introduced(secret, number, endpoint)
            assert introduction
            known[connection] = introduction
            response.headers[PROOF_HEADER] = introduction.answer()
        return response

    async def begin(connection: ServerConnection) -> None:
        assert connection.request
        with contextlib.suppress(ConnectionClosed):
            if connection in known:
                assert known[connection].is_first_frame(await connection.recv())
            asked.append(connection.request)
            await connection.send(BEGIN)
            async for _ in connection:
                pass

    async with serve_websocket(begin, "127.0.0.1", 0, process_response=answer) as server:
        endpoint = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        kinds = (["fast", "accurate"], ["demo"], ["en"])
        await slots.heartbeat(Registration("w", "w", endpoint, "ready", 8, *kinds, "0.1.0"), {})
        yield asked


@asynccontextmanager
async def starting(redis_url: str) -> AsyncGenerator[Start]:
    """To start gateways with the settings a test gives, with a worker for them."""
    client: Any = redis_client(redis_url)
    await client.flushall()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.aclose)
        asked = await stack.enter_async_context(a_worker(Slots(client)))

        async def started(**given: Any) -> Gateway:
            stop = asyncio.Event()
            port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            own = settings(**{"redis_url": redis_url, **given})
            task = asyncio.create_task(serve(own, stop, port.set_result))

            async def end() -> None:
                stop.set()
                await asyncio.wait_for(task, 10)

            stack.push_async_callback(end)
            return Gateway(f"127.0.0.1:{await port}", client, asked)

        yield started


async def begins(stream: ClientConnection) -> bool:
    return json.loads(await stream.recv())["type"] == "session.begin"


async def refused(stream: ClientConnection) -> tuple[Any, int | None]:
    """The error, after which nothing comes, and the close code."""
    messages: list[Any] = []
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                messages.append(json.loads(await stream.recv()))
    (error,) = messages
    assert error["type"] == "error"
    return error, stream.close_code


async def added(gateway: Gateway, name: str = "kiosk", sessions: int = 0, **more: Any) -> str:
    text, key = make(name, sessions, **more)
    await RedisKeys(gateway.client).add(key)
    return text
