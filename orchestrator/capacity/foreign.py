"""
Keys of ours that hold what is none of ours: whoever reaches Redis can write under our names.

An operation on such a key fails, and would fail for ever. What it held is lost already, so the key
is deleted; gateways and workers write again what belongs there, as for a Redis that lost it.
"""

import logging
from typing import Any

import redis.asyncio

logger = logging.getLogger(__name__)

PREFIX = "dalston:realtime:"
_BATCH = 1_000  # keys that are looked at with one question
_TYPES = {
    "workers": b"set",
    "sessions:active": b"set",
    "queues": b"set",
    "leases": b"zset",
    "tickets": b"zset",
    "turns": b"hash",
    "freed": b"string",
}


def _type(name: bytes) -> bytes | None:
    """What a key of this name holds, without the prefix; None for a name that we do not have."""
    kind, _, rest = name.partition(b":")
    if found := _TYPES.get(name.decode(errors="replace")):
        return found
    if kind == b"worker":
        return b"set" if rest.endswith((b":sessions", b":small")) else b"hash"
    if kind == b"session" and rest.endswith(b":ending"):
        return b"string"
    if kind in (b"key", b"address"):
        return b"set"
    return {b"session": b"hash", b"queue": b"zset"}.get(kind)


async def delete_foreign(client: "redis.asyncio.Redis") -> None:
    """Delete every key of ours whose type is not ours."""
    untyped: Any = client
    cursor = 0
    while True:
        cursor, keys = await untyped.scan(cursor, match=f"{PREFIX}*", count=_BATCH)
        async with untyped.pipeline(transaction=False) as asked:
            for key in keys:
                asked.type(key)
            types = await asked.execute()
        for key, held in zip(keys, types, strict=True):
            name = key.encode() if isinstance(key, str) else key
            held = held.encode() if isinstance(held, str) else held
            wanted = _type(name.removeprefix(PREFIX.encode()))
            if wanted and held not in (wanted, b"none"):
                logger.error(
                    "%.100r holds a %s, which is none of ours: deleted", key, held.decode()
                )
                await untyped.delete(key)
        if not cursor:
            return
