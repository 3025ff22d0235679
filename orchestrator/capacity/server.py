"""
The Redis that is there: which server it is, when it comes back, and what is published in it.

A server may take another's place, and lack the last writes: a replica is promoted, or a restart
lost them. Whoever knows what was written writes it again as soon as that is noticed.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import redis.asyncio
from redis.exceptions import ConnectionError, RedisError

from dalston.orchestrator.capacity.foreign import PREFIX
from dalston.orchestrator.capacity.redis_client import eviction, look_at

logger = logging.getLogger(__name__)

EVENTS = f"{PREFIX}events"
AGAIN_S = 0.2  # between attempts to reach a Redis that is gone
WRITTEN_AGAIN_S = 5  # after the start of a Redis gateways have told it all they know
LOOK_S = 5.0  # between two looks at which server it is


class Server:
    """All operations raise redis.RedisError when Redis cannot be reached."""

    def __init__(self, client: "redis.asyncio.Redis"):
        self._redis: Any = client
        self._seen: tuple[str, str] | None = None  # the one that was looked at last
        self._changed_at = -math.inf  # when that was another than before, in our time

    async def may_come_back(self) -> bool:
        """Whether gateways are perhaps still writing what Redis has lost: it has just begun, or
        another server, which may lack the last writes, has just taken its place."""
        about = await look_at(self._redis)
        self._is_another(about)
        changed_s = time.monotonic() - self._changed_at
        return min(int(about["uptime_in_seconds"]), changed_s) < WRITTEN_AGAIN_S

    def _is_another(self, about: Mapping[str, Any]) -> bool:
        """Whether this is another Redis than the one that was looked at before, or the same with
        another history: it was started again, or a replica was promoted."""
        before, self._seen = self._seen, (about["run_id"], about["master_replid"])
        another = before not in (None, self._seen)
        # Of the first that we see we know only whether it was a replica at some time.
        promoted = before is None and str(about["master_replid2"]).strip("0") != ""
        if another or promoted:
            self._changed_at = time.monotonic()
        return another

    async def announce(self, event: Mapping[str, str]) -> None:
        """Tell all gateways. It is a hint: a gateway that does not listen now never hears it."""
        await self._redis.publish(EVENTS, json.dumps(event))

    async def follow(
        self,
        connected: Callable[[], Awaitable[object]],
        on_event: Callable[[Mapping[str, str]], Awaitable[object]] | None = None,
    ) -> None:
        """Listen for ever: `on_event` is called with each event, `connected` whenever Redis is
        reached.

        That is at first, and after each time it was away; it may have lost all it knew. A call
        that fails with a RedisError is made again. Raises UnsupportedRedis.
        """
        lost = False
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(EVENTS)
                    looked = 0.0
                    while True:
                        item = await channel.get_message(timeout=LOOK_S)
                        if item and item["type"] == "subscribe":
                            about, looked = await look_at(self._redis), time.monotonic()
                            self._is_another(about)
                            if wrong := eviction(about):
                                logger.warning("%s", wrong)
                            await connected()
                            lost = False
                        elif item and item["type"] == "message" and on_event:
                            if event := _event(item["data"]):
                                await on_event(event)
                        # This connection may lead to a server that is no master any more.
                        elif looked and time.monotonic() - looked > LOOK_S:
                            looked = time.monotonic()
                            if self._is_another(await look_at(self._redis)):
                                raise ConnectionError("another server has taken its place")
            except RedisError as error:
                if not lost:
                    logger.warning("Redis: %s", error)
                lost = True
                await asyncio.sleep(AGAIN_S)


def _event(data: bytes | str) -> Mapping[str, str] | None:
    """What somebody has published; None if it is no event: anybody who reaches Redis may."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or not all(isinstance(v, str) for v in event.values()):  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        logger.warning("what came as an event is none: %.100r", data)
        return None
    return event  # pyright: ignore[reportUnknownVariableType]
