"""
Ends a session for somebody who does not know where it is.
"""

import asyncio
from typing import Literal

from dalston.orchestrator.capacity.slots import Slots

ANSWER_S = 2.0  # for the gateway that has a session to say so
_ASK_EVERY_S = 0.02


async def end_session(slots: Slots, session_id: str) -> Literal["terminating", "ended"] | None:
    """Have a session ended by the gateway that serves it. If none does, as after a crash, its slot
    is given back here, and nobody can go on with it. None: there is no such session.

    Raises RedisError.
    """
    if not await slots.is_active(session_id):
        return None
    await slots.server.announce({"type": "session.terminate", "session_id": session_id})
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ANSWER_S
    while loop.time() < deadline:
        if await slots.is_ending(session_id):
            return "terminating"
        if not await slots.is_active(session_id):
            return "ended"
        await asyncio.sleep(_ASK_EVERY_S)
    await slots.discard(session_id)
    return "ended"
