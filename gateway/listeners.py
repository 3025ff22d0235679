"""
Those who listen to what is heard of a call whose own client reads no text, at any gateway.

It goes through Redis, which passes it on and keeps nothing: whoever listens later does not hear
what was said before. Each call has a name that nobody guesses, and who knows it may listen.
"""

import asyncio
import contextlib
import logging
import re
from typing import Any

from redis.exceptions import RedisError

from dalston.gateway.calls.caller import Caller
from dalston.orchestrator.capacity.foreign import PREFIX
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import refusal

logger = logging.getLogger(__name__)

CHANNEL = f"{PREFIX}heard:"
WAITING = 1_000  # messages of a call that Redis has not taken; of more the oldest are lost
LAST_S = 2.0  # for Redis to take the last of a call
LOOK_S = 5.0
_NAME = re.compile("[A-Za-z0-9_-]{16,64}")
_OVER = ""  # told when the call is


class Heard:
    """What is heard of one call, on its way to whoever listens."""

    def __init__(self, client: Any):
        self._redis = client
        self._waiting = asyncio.Queue[tuple[str, str]](WAITING)
        self._telling = asyncio.create_task(self._tell())

    def say(self, name: str, message: str) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait((name, message))

    async def end(self, name: str) -> None:
        self.say(name, _OVER)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                await self._telling
        self._telling.cancel()

    async def _tell(self) -> None:
        message = None
        while message != _OVER:
            name, message = await self._waiting.get()
            try:
                if name:
                    await self._redis.publish(CHANNEL + name, message)
            except RedisError as error:
                logger.warning("what was heard is not told: %s", error)


async def listen(client: Any, name: str, caller: Caller, patience_s: float) -> None:
    """Tell a caller what is heard of a call from now on, until it is over or they leave.
    patience_s: for them to take a message. Raises Disconnected."""
    if not _NAME.fullmatch(name):
        await caller.open()
        error = refusal("invalid_parameter", f"{name[:80]!r} is no name of a call")
        return await caller.refuse(error, CloseCode.INVALID_PARAMETER)
    caller.ignore()
    caller.resume()
    try:
        async with client.pubsub() as channel:
            await channel.subscribe(CHANNEL + name)
            while not await _subscribed(channel):
                pass
            await caller.open()
            telling = asyncio.create_task(_pass_on(channel, caller, patience_s))
            leaving = asyncio.create_task(caller.until_disconnected())
            try:
                await asyncio.wait([telling, leaving], return_when=asyncio.FIRST_COMPLETED)
                if telling.done():
                    await telling
            finally:
                for task in (telling, leaving):
                    task.cancel()
                await asyncio.gather(telling, leaving, return_exceptions=True)
    except RedisError as error:
        logger.warning("Redis: %s", error)
        await caller.open()
        refused = refusal("no_capacity", "The register cannot be reached.")
        return await caller.refuse(refused, CloseCode.NO_CAPACITY)
    except TimeoutError:
        return await caller.close(CloseCode.SLOW_READER)  # a sentence would not be read either
    await caller.close(CloseCode.NORMAL)


async def _subscribed(channel: Any) -> bool:
    item: dict[str, Any] | None = await channel.get_message(timeout=LOOK_S)
    return bool(item and item["type"] == "subscribe")


async def _pass_on(channel: Any, caller: Caller, patience_s: float) -> None:
    """Raises RedisError, Disconnected and TimeoutError."""
    while True:
        item = await channel.get_message(timeout=LOOK_S)
        if not item or item["type"] != "message":
            continue
        data: bytes | str = item["data"]
        message = data.decode(errors="replace") if isinstance(data, bytes) else data
        if message == _OVER:
            return
        if waiting := caller.say(message):
            async with asyncio.timeout(patience_s):
                await caller.send(waiting)
