"""
How many may be connected.
"""

import asyncio
from typing import Any

import pytest
from support.fronted import gateway_over
from websockets.exceptions import InvalidStatus

from dalston.gateway.crowds import Crowd, with_limits


class Callers:
    """Callers by address, each of whom stays."""

    def __init__(self, most: int, most_of_address: int):
        self._app: Any = with_limits(self._stay, Crowd(most, most_of_address))
        self._leave = asyncio.Event()
        self._staying = list[asyncio.Task[Any]]()

    async def _stay(self, scope: Any, receive: Any, send: Any) -> None:
        await self._leave.wait()

    async def comes(self, address: str | None, kind: str = "websocket") -> int:
        """The status that they are refused with; 0: they are not."""
        told = list[Any]()

        async def send(message: Any) -> None:
            told.append(message)

        scope: Any = {"type": kind, "client": (address, 1) if address else None}
        task = asyncio.create_task(self._app(scope, asyncio.Event().wait, send))
        await asyncio.sleep(0)
        if not told:
            self._staying.append(task)
            return 0
        await task
        assert dict(told[0]["headers"])[b"retry-after"]
        assert b'"detail"' in told[1]["body"]
        return told[0]["status"]

    async def leave(self) -> None:
        self._leave.set()
        await asyncio.gather(*self._staying)
        self._leave.clear()
        self._staying.clear()


async def test_one_address_has_so_many_and_others_do_not_notice() -> None:
    crowd = Callers(100, 2)
    first, second = ["192.0.2.7"] * 2, ["2001:db8:1:2::1", "2001:db8:1:2:ffff::"]
    assert [await crowd.comes(host) for host in (*first, *second)] == [0] * 4
    assert await crowd.comes("192.0.2.7") == 429
    assert await crowd.comes("2001:db8:1:2::77") == 429  # of the same network
    assert await crowd.comes("2001:db8:1:3::77") == 0
    assert await crowd.comes("192.0.2.7", "http") == 0  # no WebSocket
    await crowd.leave()
    assert await crowd.comes("192.0.2.7") == 0
    await crowd.leave()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", None])
async def test_this_machine_is_no_address(address: str | None) -> None:
    crowd = Callers(5, 1)
    assert [await crowd.comes(address) for _ in range(5)] == [0] * 5
    assert await crowd.comes(address) == 503
    await crowd.leave()


async def test_without_limits_everybody_comes() -> None:
    crowd = Callers(0, 0)
    assert [await crowd.comes("192.0.2.7") for _ in range(9)] == [0] * 9
    await crowd.leave()


async def test_who_is_one_too_many_is_refused_before_the_upgrade_and_pages_are_served(
    redis_url: str,
) -> None:
    async with gateway_over(redis_url, connections=1) as gateway:
        async with gateway.stream("overflow=queue") as first:
            with pytest.raises(InvalidStatus) as refused:
                await gateway.stream()
            response = refused.value.response
            assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
            assert response.headers["X-Request-ID"].encode() in (response.body or b"")
            assert (await gateway.http("/health"))[0] == 503  # there is no worker
            await first.close()
        status, _ = await gateway.http("/health")
        assert status == 503
