"""
Where Wyoming's clients come in: a TCP port of its own, for callers who are served as all others.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.exceptions import RedisError

from dalston.gateway.app import Gateway
from dalston.gateway.calls.caller import Caller
from dalston.gateway.crowds import Crowd, TooMany
from dalston.gateway.protocols.protocol import Opening
from dalston.gateway.protocols.wyoming import Wyoming
from dalston.gateway.transport.transport import Disconnected
from dalston.gateway.transport.wyoming import WyomingTransport
from dalston.orchestrator.capacity.slots import Slots
from dalston.orchestrator.process.request_ids import new_or, request_id
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import refusal
from dalston.triton.contract import LANGUAGES

logger = logging.getLogger(__name__)


@asynccontextmanager
async def wyoming_port(
    gateway: Gateway, crowd: Crowd, listener: Callable[[int], Any]
) -> AsyncGenerator[None]:
    """Serve Wyoming's clients, if there is a port for them. listener: a socket that is bound to a
    port."""
    port = gateway.settings.wyoming_port
    if port is None:
        yield
        return
    calls = set[asyncio.Task[None]]()

    def begin(transport: WyomingTransport) -> None:
        call = asyncio.create_task(_serve(gateway, crowd, transport))
        calls.add(call)
        call.add_done_callback(calls.discard)

    longest = gateway.settings.frame_bytes
    server = await asyncio.get_running_loop().create_server(
        lambda: WyomingTransport(longest, begin), sock=listener(port)
    )
    logger.info("Wyoming's clients are served at %s:%d", gateway.settings.host, port)
    try:
        yield
    finally:
        server.close()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def _serve(gateway: Gateway, crowd: Crowd, transport: WyomingTransport) -> None:
    request_id.set(new_or(None))
    key = gateway.settings.wyoming_key
    opening = Opening([], {"x-api-key": key.get_secret_value()} if key else {}, time.time)
    try:
        protocol = Wyoming(opening, await _languages(gateway.slots))
        caller = Caller(transport, protocol, opening, gateway.settings.frame_bytes)
        try:
            with crowd.joined(transport.address):
                await gateway.calls.serve(caller)
        except TooMany as error:
            with suppress(Disconnected):
                await caller.tell(refusal("rate_limit", str(error)))
                await caller.close(CloseCode.TOO_MANY_SESSIONS)
        await transport.gone()
    except Exception:
        logger.exception("a call of Wyoming")
    finally:
        transport.abort()


async def _languages(slots: Slots) -> Collection[str]:
    """Those that models here know; all that any may know, if nobody can say."""
    with suppress(RedisError):
        known = {code for worker in await slots.workers() for code in worker.languages}
        return known - {"auto"} or LANGUAGES
    return LANGUAGES
