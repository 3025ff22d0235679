"""
How a caller gets its slot, and what it gets when none is free: an answer, or a place in line.

The line is in Redis (orchestrator/capacity/slots.py) and the same for all gateways. A gateway that
waits for a caller asks again and again, which keeps the place; when the caller vanishes it says so,
and when the gateway dies the place is free within seconds.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from redis.exceptions import RedisError

from dalston.gateway.protocols.protocol import Overflow
from dalston.orchestrator.capacity.slots import NoCapacity, Slot, Slots, TooMany
from dalston.orchestrator.protocol.messages import Queued

# Between two questions for a slot. The first in line are served next and ask most often; the last
# well within the five seconds that a place is kept.
ASK_FIRST_S, ASK_LAST_S, ASK_MORE_S = 0.1, 1.0, 0.02  # more for each place in line


@dataclass(frozen=True)
class Admission:
    """A request for a slot: who asks, and what is to be done if there is none."""

    session_id: str
    variant: str
    record: Mapping[str, str | int]
    key_id: str = ""
    key_limit: int = 0  # 0 is none
    address: str = ""
    address_limit: int = 0
    strategy: Overflow = "reject"
    timeout_s: float = 30.0  # in line
    partner: str = ""  # another session that gets a slot with it, or neither does


async def admit(
    slots: Slots, request: Admission, tell: Callable[[Queued], Awaitable[None]]
) -> Slot:
    """A slot for a new session. Raises NoCapacity, TooMany and RedisError.

    A caller that waits is told their position, and again when it changes. If this is cancelled,
    they leave the line.
    """
    if request.strategy != "queue":
        return await _acquire(slots, request, ticket=False)
    try:
        return await _wait(slots, request, tell)
    except BaseException:
        # Shielded: a caller that vanishes cancels us, and the next must not wait for it.
        with contextlib.suppress(RedisError):
            await asyncio.shield(_leave(slots, request))
        raise


async def _leave(slots: Slots, request: Admission) -> None:
    for session_id in filter(None, (request.session_id, request.partner)):
        await slots.leave(session_id)


async def give_back(slots: Slots, slot: Slot) -> None:
    """Release a slot that nobody will use, and its partner. Raises RedisError."""
    for given in filter(None, (slot, slot.partner)):
        await slots.release(given.session_id, given.epoch, "error")


async def _wait(
    slots: Slots, request: Admission, tell: Callable[[Queued], Awaitable[None]]
) -> Slot:
    deadline = time.monotonic() + request.timeout_s
    ticket: bool | str = True
    position = 0
    while True:
        left = deadline - time.monotonic()
        try:
            return await _acquire(slots, request, ticket)
        except NoCapacity as refused:
            if not refused.position or left <= 0:
                raise
            ticket = refused.came
            if refused.position != position:
                position = refused.position
                await tell(Queued(position, round(left, 1)))
        except RedisError:
            # In line there is time for it to come back.
            if ticket is True or left <= 0:
                raise
        pause = min(ASK_LAST_S, ASK_FIRST_S + ASK_MORE_S * (position - 1))
        await asyncio.sleep(min(pause, max(0.0, left)))


async def _acquire(slots: Slots, request: Admission, ticket: bool | str) -> Slot:
    asking = asyncio.ensure_future(
        slots.acquire(
            request.session_id,
            request.variant,
            request.record,
            key_id=request.key_id,
            key_limit=request.key_limit,
            address=request.address,
            address_limit=request.address_limit,
            ticket=ticket,
            degrade=request.strategy == "degrade",
            partner=request.partner,
        )
    )
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        # The caller vanished while Redis was deciding: its slot is not kept for a whole lease.
        with contextlib.suppress(NoCapacity, TooMany, RedisError):
            await give_back(slots, await asking)
        raise
