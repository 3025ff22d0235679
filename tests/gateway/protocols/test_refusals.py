"""
Clients that expect HTTP's answer when they get no session, and get it from a real gateway.
"""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from support.fronted import FakeWorker, Gateway, echo, gateway_over
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

LISTEN = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000"


@pytest.fixture
async def gateway(redis_url: str) -> AsyncGenerator[Gateway]:
    async with gateway_over(redis_url, overflow="reject") as gateway:
        yield gateway


async def refused(gateway: Gateway, path: str, **more: Any) -> tuple[int, dict[str, str], str]:
    with pytest.raises(InvalidStatus) as answer:
        async with connect(f"ws://{gateway.url}{path}", compression=None, **more):
            pass
    response = answer.value.response
    return response.status_code, dict(response.headers.raw_items()), response.body.decode()


async def test_who_gets_no_slot_is_answered_over_http(gateway: Gateway) -> None:
    status, headers, body = await refused(gateway, LISTEN)
    assert status == 503
    assert int({name.lower(): value for name, value in headers.items()}["retry-after"]) > 0
    assert "No realtime workers" in body


async def test_a_parameter_that_cannot_be_followed_is_answered_over_http(gateway: Gateway) -> None:
    status, _, body = await refused(gateway, f"{LISTEN}&language=tlh")
    assert (status, "language='tlh'" in body) == (400, True)


async def test_whoever_gets_a_slot_is_connected_and_gives_it_back(gateway: Gateway) -> None:
    async with (
        FakeWorker(gateway.slots, "a", echo).running(),
        connect(f"ws://{gateway.url}{LISTEN}", compression=None) as stream,
    ):
        await gateway.until_held(1)
        await stream.send(bytes(3200))
    await gateway.until_held(0)


async def test_who_leaves_while_the_connection_opens_leaves_no_slot(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running():
        for _ in range(5):
            stream = await connect(f"ws://{gateway.url}{LISTEN}", compression=None)
            stream.transport.abort()
        await gateway.until_held(0)
