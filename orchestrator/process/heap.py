"""
Memory that was freed goes back to the system.

Calls leave their audio in pieces of kilobytes between others that stay, and the C library keeps the
holes: a worker grew by megabytes an hour, none of it in use (docs/log.md, "Memory that nobody
uses"). Giving 15 MB back takes some milliseconds.
"""

import asyncio
import ctypes

TRIM_EVERY_S = 60.0
# glibc's; other C libraries have none, and need none.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def trim() -> None:
    if _malloc_trim:
        _malloc_trim(0)


async def keep_trimmed() -> None:
    while True:
        await asyncio.sleep(TRIM_EVERY_S)
        trim()
