"""
API keys at rest: in a hash in Redis, or in a file, a JSON object on each line.

A key is 128 random bits. There are no likely ones to try, so its SHA-256 keeps it as secret as a
slow hash for passwords would, and costs nothing on each call. It is found by the first digits of
that hash, and compared by whoever asks.

What tokens are signed with (tokens.py) is kept beside the keys, in a place of its own: whoever
reads the keys alone can neither call nor sign.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import redis.asyncio
from msgspec import Meta
from redis.exceptions import WatchError

from dalston.gateway.access.secret_file import KeysError, SecretFile

REDIS_KEY = "dalston:keys"
REDIS_SIGNING_KEY = "dalston:keys:signing"
PREFIX = "dk_"  # logs leave out what begins like this: orchestrator/process/logs.py
_ID = 16  # hexadecimal digits of the SHA-256 that a key is found by

# What a key may do: stream live audio, send recorded audio, end sessions, watch. Each stands for
# itself alone.
Scope = Literal["stream", "files", "admin", "read"]
# A key that does not say it: what every key could do before there were scopes.
DEFAULT_SCOPES: tuple[Scope, ...] = ("stream",)

# One script, so that two who add the same name at once cannot both succeed.
_ADD = """
for _, record in ipairs(redis.call("HVALS", KEYS[1])) do
  if cjson.decode(record).name == ARGV[1] then return 0 end
end
redis.call("HSET", KEYS[1], ARGV[2], ARGV[3])
return 1
"""


class Key(msgspec.Struct, frozen=True):
    """What is kept of a key. Its name stands for it in logs and in Redis."""

    name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._-]{1,64}\Z")]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    sessions: Annotated[int, Meta(ge=0)] = 0  # at the same time; 0: no limit
    created: str = ""
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] = DEFAULT_SCOPES
    expires: Annotated[datetime, Meta(tz=True)] | None = None  # from then on it is worth nothing

    @property
    def id(self) -> str:
        return self.sha256[:_ID]

    def expired(self, now: float) -> bool:
        """now: seconds of the epoch."""
        return self.expires is not None and now >= self.expires.timestamp()


_decoder = msgspec.json.Decoder(Key)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def make(
    name: str,
    sessions: int = 0,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    expires: datetime | None = None,
) -> tuple[str, Key]:
    """A new key, and what is kept of it. Raises KeysError."""
    text = PREFIX + secrets.token_hex(16)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    fields = {"name": name, "sha256": sha256(text), "sessions": sessions, "created": created}
    fields |= {"scopes": list(dict.fromkeys(scopes)), "expires": expires}
    try:
        return text, msgspec.convert(fields, Key)
    except msgspec.ValidationError as error:
        raise KeysError(f"{name!r} cannot be added: {error}") from None


class FileKeys:
    """Read again when the file changes. All operations raise KeysError when it cannot be read or
    written."""

    def __init__(self, path: Path):
        self._file = SecretFile(path, _parsed)
        self._signing = SecretFile(path.with_name(f"{path.name}.signing"), str.encode)

    def load(self) -> None:
        self._file.read()

    async def find(self, digest: str) -> Key | None:
        """The key that may have this SHA-256."""
        return self._file.read().get(digest[:_ID])

    async def all(self) -> list[Key]:
        return sorted(self._file.read().values(), key=lambda key: key.name)

    async def add(self, key: Key) -> None:
        """Raises KeysError if the name is taken."""
        with self._file.alone():
            before = await self.all() if self._file.path.exists() else []
            if any(other.name == key.name for other in before):
                raise KeysError(f"there is a key named {key.name!r} already")
            self._write([*before, key])

    async def revoke(self, name: str) -> bool:
        """False if there is no such key."""
        with self._file.alone():
            before = await self.all()
            after = [key for key in before if key.name != name]
            if len(after) == len(before):
                return False
            self._write(after)
            return True

    def _write(self, keys: Iterable[Key]) -> None:
        self._file.replace(b"".join(msgspec.json.encode(key) + b"\n" for key in keys))

    async def signing(self) -> bytes | None:
        """What tokens are signed with; None if nobody has made it yet."""
        return self._signing.read() if self._signing.path.exists() else None

    async def change_signing(self, change: Callable[[bytes | None], bytes]) -> bytes:
        """change: makes what is kept from now on of what was kept before."""
        with self._signing.alone():
            before = await self.signing()
            after = change(before)
            if after != before:
                self._signing.replace(after, like=self._file.path)
            return after


def _parsed(text: str) -> dict[str, Key]:
    """The keys of a file, by their id. Raises ValueError."""
    keys = dict[str, Key]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            key = _decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise ValueError(f"line {number}: {error}") from None
        keys[key.id] = key
    return keys


class RedisKeys:
    """All operations raise redis.RedisError when Redis cannot be reached, and KeysError when what
    is there cannot be read."""

    def __init__(self, client: "redis.asyncio.Redis"):
        self._redis: Any = client
        self._add = self._redis.register_script(_ADD)

    async def find(self, digest: str) -> Key | None:
        """The key that may have this SHA-256."""
        record = await self._redis.hget(REDIS_KEY, digest[:_ID])
        return None if record is None else _decoded(record)

    async def all(self) -> list[Key]:
        records = await self._redis.hvals(REDIS_KEY)
        return sorted(map(_decoded, records), key=lambda key: key.name)

    async def add(self, key: Key) -> None:
        """Raises KeysError if the name is taken."""
        record = msgspec.json.encode(key)
        if not await self._add(keys=[REDIS_KEY], args=[key.name, key.id, record]):
            raise KeysError(f"there is a key named {key.name!r} already")

    async def revoke(self, name: str) -> bool:
        """False if there is no such key."""
        found = [key.id for key in await self.all() if key.name == name]
        return bool(found and await self._redis.hdel(REDIS_KEY, *found))

    async def signing(self) -> bytes | None:
        """What tokens are signed with; None if nobody has made it yet."""
        return await self._redis.get(REDIS_SIGNING_KEY)

    async def change_signing(self, change: Callable[[bytes | None], bytes]) -> bytes:
        """change: makes what is kept from now on of what was kept before."""
        async with self._redis.pipeline() as pipe:
            while True:
                try:
                    await pipe.watch(REDIS_SIGNING_KEY)
                    before = await pipe.get(REDIS_SIGNING_KEY)
                    after = change(before)
                    if after != before:
                        pipe.multi()
                        pipe.set(REDIS_SIGNING_KEY, after)
                        await pipe.execute()
                    return after
                except WatchError:  # somebody else has changed it meanwhile
                    continue


def _decoded(record: bytes) -> Key:
    try:
        return _decoder.decode(record)
    except msgspec.MsgspecError as error:
        raise KeysError(f"{REDIS_KEY} in Redis: {error}") from None
