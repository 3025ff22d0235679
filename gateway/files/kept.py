"""
Transcripts of recordings, kept for a while for whoever asks for them by their id: in Redis, so that
any gateway has them, and for the key that the recording came with.
"""

import re
import secrets
import zlib

import msgspec
import redis.asyncio

PREFIX = "dalston:transcript:"
_ID = re.compile(r"tr_[0-9a-f]{24}")


class _Kept(msgspec.Struct):
    key_id: str
    body: msgspec.Raw


class Transcripts:
    def __init__(self, redis_client: "redis.asyncio.Redis", seconds: int):
        """seconds: how long they are kept; 0: none is."""
        self._redis, self._seconds = redis_client, seconds

    @property
    def are_kept(self) -> bool:
        return self._seconds > 0

    async def keep(self, id: str, body: bytes, key_id: str) -> None:
        """body: JSON. Raises RedisError."""
        kept = zlib.compress(msgspec.json.encode(_Kept(key_id, msgspec.Raw(body))), 1)
        await self._redis.set(PREFIX + id, kept, ex=self._seconds)

    async def find(self, id: str, key_id: str) -> bytes | None:
        """Raises RedisError."""
        if not _ID.fullmatch(id):
            return None
        found = await self._redis.get(PREFIX + id)
        if not isinstance(found, bytes):
            return None
        kept = msgspec.json.decode(zlib.decompress(found), type=_Kept)
        return bytes(kept.body) if kept.key_id == key_id else None

    async def forget(self, id: str, key_id: str) -> bool:
        """Whether there was one. Raises RedisError."""
        if await self.find(id, key_id) is None:
            return False
        return bool(await self._redis.delete(PREFIX + id))


def new_id() -> str:
    return f"tr_{secrets.token_hex(12)}"
