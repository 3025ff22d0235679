"""
The register's record of a session: what another gateway needs to go on with it. Written whenever
there is more of it, and once more if the register loses it while its caller is away.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from redis.exceptions import RedisError

from dalston.gateway.calls.relay import Relay
from dalston.orchestrator.capacity.slots import Slot, Slots

logger = logging.getLogger(__name__)

AFTER_S = 0.05  # a final and the snapshot after it are saved together
AGAIN_S = 1.0  # what could not be written
AWAY_S = 120.0  # the register keeps a session for so long (RESUME_TTL in prelude.lua)


class Record:
    def __init__(self, relay: Relay, slots: Slots):
        self._relay, self._slots = relay, slots
        self._more = asyncio.Event()
        self._over = asyncio.Event()

    def more(self) -> None:
        """Say that there may be something to write."""
        if self._relay.has_unsaved:
            self._more.set()

    def everything(self) -> None:
        """Write everything: the register has lost what it had."""
        self._relay.nothing_is_saved()
        self._more.set()

    def end(self) -> None:
        """keep() writes what is left, and returns."""
        self._over.set()
        self._more.set()

    async def keep(self, write: Callable[[], Awaitable[bool]]) -> None:
        """write: called once for everything that is new; if it returns False, it is called again
        later."""
        while not self._over.is_set():
            await self._more.wait()
            await _within(AFTER_S, self._over)
            self._more.clear()
            if not await write() and not self._over.is_set():
                await _within(AGAIN_S, self._more)
                self._more.set()

    async def write(self, slot: Slot) -> Literal["kept", "not yet", "taken over"]:
        """At once. slot: the one the session has. Taken over: by another gateway."""
        relay = self._relay
        while fields := relay.unsaved():
            try:
                answer = await self._slots.keep(
                    slot.session_id, slot.epoch, fields, slot.key_id, whole="config" in fields
                )
            except RedisError as error:
                relay.not_saved(fields)
                logger.warning("%s: not saved: %s", slot.session_id, error)
                return "not yet"
            if answer == "lost":
                relay.nothing_is_saved()
                continue
            if answer != "kept":
                return "taken over"
            relay.saved(fields)
            break
        return "kept"


class Away:
    """The records of sessions whose callers have left and may come back."""

    def __init__(self, slots: Slots):
        self._slots = slots
        # By session: until when, in loop time; the slot it had; all its fields.
        self._left = dict[str, tuple[float, Slot, dict[str, str]]]()

    def leave(self, slot: Slot, relay: Relay) -> None:
        """The caller is gone, and the session had not ended."""
        loop = asyncio.get_running_loop()
        relay.nothing_is_saved()
        kept = self._left[slot.session_id] = loop.time() + AWAY_S, slot, relay.unsaved()

        def forget() -> None:
            if self._left.get(slot.session_id) is kept:  # else they came back, and left again
                del self._left[slot.session_id]

        loop.call_later(AWAY_S, forget)

    def __len__(self) -> int:
        return len(self._left)

    async def write(self) -> None:
        """Write them all again, since the register may have lost them. Raises RedisError."""
        now = asyncio.get_running_loop().time()
        for session_id, (until, slot, fields) in list(self._left.items()):
            if until > now:
                await self._slots.keep(session_id, slot.epoch, fields, slot.key_id, whole=True)


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
