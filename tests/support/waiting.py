"""
Waiting for what somebody else does, for a while.
"""

import asyncio
from collections.abc import Callable


async def until(happened: Callable[[], object], within_s: float = 5.0) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not happened():
            await asyncio.sleep(0.01)
