"""
The register's record of a session: what another gateway needs to go on with it. Written whenever
there is more of it, and once more if the register loses it while its caller is away.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

from redis.exceptions import RedisError

from dalston.gateway.calls.relay import Relay
from dalston.orchestrator.capacity.slots import Slot, Slots

logger = logging.getLogger(__name__)

AFTER_S = 0.05  # a final and the snapshot after it are saved together
AGAIN_S = 1.0  # what could not be written


class Record:
    def __init__(self, relay: Relay, slots: Slots, kept: bool):
        """kept: whether anything is written at all."""
        self._relay, self._slots, self._is_kept = relay, slots, kept
        self._more = asyncio.Event()
        self._over = asyncio.Event()
        self._fields = set[str]()  # that the register has, as far as we know
        self._writing = asyncio.Lock()

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
        # One after the other: what is newer must not be there before what it adds to.
        async with self._writing:
            return await self._write(slot)

    async def _write(self, slot: Slot) -> Literal["kept", "not yet", "taken over"]:
        relay = self._relay
        while fields := relay.unsaved():
            if not self._is_kept:
                relay.saved(fields)
                break
            whole = "config" in fields
            before = 0 if whole else len(self._fields)
            try:
                answer = await self._slots.keep(
                    slot.session_id, slot.epoch, fields, slot.key_id, whole, before
                )
            except RedisError as error:
                relay.not_saved(fields)
                logger.warning("%s: not saved: %s", slot.session_id, error)
                return "not yet"
            except asyncio.CancelledError:
                relay.not_saved(fields)  # whoever writes next writes them
                raise
            if answer == "lost":
                relay.nothing_is_saved()
                continue
            if answer != "kept":
                return "taken over"
            self._fields = {*fields} if whole else {*fields, *self._fields}
            relay.saved(fields)
            break
        return "kept"

    async def forget(self, session_id: str) -> None:
        """Keep nothing: the client knows the end."""
        if self._is_kept:
            await forget(self._slots, session_id)


async def forget(slots: Slots, session_id: str) -> None:
    """Keep nothing of a session whose client knows its end."""
    try:
        await slots.forget(session_id)
    except RedisError as error:
        logger.warning("%s: kept until its time is over: %s", session_id, error)


class Away:
    """The records of sessions whose callers have left and may come back."""

    def __init__(self, slots: Slots, kept_s: float):
        """kept_s: how long they may take."""
        self._slots, self._kept_s = slots, kept_s
        # By session: until when, in loop time; the slot it had; all its fields.
        self._left = dict[str, tuple[float, Slot, dict[str, str]]]()

    def leave(self, slot: Slot, relay: Relay) -> None:
        """The caller is gone, and the session had not ended."""
        relay.nothing_is_saved()
        until = asyncio.get_running_loop().time() + self._kept_s
        self._left[slot.session_id] = until, slot, relay.unsaved()

    def is_back(self, session_id: str) -> None:
        self._left.pop(session_id, None)

    def forget(self) -> None:
        """Forget those who did not come back in time. To be called every few seconds."""
        now = asyncio.get_running_loop().time()
        self._left = {id: left for id, left in self._left.items() if left[0] > now}

    async def write(self) -> None:
        """Write them all again, since the register may have lost them. Raises RedisError."""
        self.forget()
        await self._write(list(self._left))

    async def write_missing(self) -> None:
        """Write those again that the register has lost. Raises RedisError."""
        self.forget()
        await self._write(await self._slots.not_kept(list(self._left)))

    async def _write(self, session_ids: Iterable[str]) -> None:
        for session_id in session_ids:
            if left := self._left.get(session_id):
                _, slot, fields = left
                answer = await self._slots.keep(
                    session_id, slot.epoch, fields, slot.key_id, whole=True
                )
                if answer == "taken_over":
                    self.is_back(session_id)


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
