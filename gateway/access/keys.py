"""
API keys at rest: in a hash in Redis, or in a file, a JSON object on each line.

A key is 128 random bits. There are no likely ones to try, so its SHA-256 keeps it as secret as a
slow hash for passwords would, and costs nothing on each call. It is found by the first digits of
that hash, and compared by whoever asks.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import msgspec
import redis.asyncio
from msgspec import Meta

logger = logging.getLogger(__name__)

REDIS_KEY = "dalston:keys"
PREFIX = "dk_"  # logs leave out what begins like this: orchestrator/process/logs.py
_ID = 16  # hexadecimal digits of the SHA-256 that a key is found by

# One script, so that two who add the same name at once cannot both succeed.
_ADD = """
for _, record in ipairs(redis.call("HVALS", KEYS[1])) do
  if cjson.decode(record).name == ARGV[1] then return 0 end
end
redis.call("HSET", KEYS[1], ARGV[2], ARGV[3])
return 1
"""


class KeysError(Exception):
    """Keys that cannot be read or written as asked; says why."""


class Key(msgspec.Struct, frozen=True):
    """What is kept of a key. Its name stands for it in logs and in Redis."""

    name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._-]{1,64}\Z")]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    sessions: Annotated[int, Meta(ge=0)] = 0  # at the same time; 0: no limit
    created: str = ""

    @property
    def id(self) -> str:
        return self.sha256[:_ID]


_decoder = msgspec.json.Decoder(Key)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def make(name: str, sessions: int = 0) -> tuple[str, Key]:
    """A new key, and what is kept of it. Raises KeysError."""
    text = PREFIX + secrets.token_hex(16)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    fields = {"name": name, "sha256": sha256(text), "sessions": sessions, "created": created}
    try:
        return text, msgspec.convert(fields, Key)
    except msgspec.ValidationError as error:
        raise KeysError(f"{name!r} cannot be added: {error}") from None


class FileKeys:
    """Read again when the file changes."""

    def __init__(self, path: Path):
        self._path = path
        self._stamp: tuple[int, ...] | None = None  # of the file that _keys were read from
        self._keys: dict[str, Key] = {}

    def load(self) -> None:
        """Raises KeysError, and keeps the keys of before."""
        try:
            stamp = self._stat()
            lines = self._path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysError(f"{self._path} cannot be read: {error}") from None
        keys = dict[str, Key]()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                key = _decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise KeysError(f"{self._path}, line {number}: {error}") from None
            keys[key.id] = key
        self._keys, self._stamp = keys, stamp

    def _stat(self) -> tuple[int, ...]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    async def find(self, digest: str) -> Key | None:
        """The key that may have this SHA-256."""
        try:
            if self._stamp != self._stat():
                self.load()
                logger.info("%s was read: %d keys", self._path, len(self._keys))
        except (KeysError, OSError) as error:
            # Half an edit must not lock everybody out.
            logger.error("%s; the keys of before are kept", error)
        return self._keys.get(digest[:_ID])

    async def all(self) -> list[Key]:
        self.load()
        return sorted(self._keys.values(), key=lambda key: key.name)

    async def add(self, key: Key) -> None:
        """Raises KeysError if the name is taken."""
        with self._alone():
            before = await self.all() if self._path.exists() else []
            if any(other.name == key.name for other in before):
                raise KeysError(f"there is a key named {key.name!r} already")
            self._write([*before, key])

    async def revoke(self, name: str) -> bool:
        """False if there is no such key."""
        with self._alone():
            before = await self.all()
            after = [key for key in before if key.name != name]
            if len(after) == len(before):
                return False
            self._write(after)
            return True

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """Of those who change the file. It is replaced each time, so its folder is locked."""
        try:
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise KeysError(f"{self._path} cannot be written: {error}") from None
        try:
            # Where folders cannot be locked, as on NFS, changes are made all the same.
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _write(self, keys: Iterable[Key]) -> None:
        """In one step, so that a gateway never reads half of it."""
        text = b"".join(msgspec.json.encode(key) + b"\n" for key in keys)
        try:
            with NamedTemporaryFile(dir=self._path.parent, delete=False) as new:
                new.write(text)
            if self._path.exists():  # who may read it stays as it is
                stat = self._path.stat()
                shutil.copymode(self._path, new.name)
                if (stat.st_uid, stat.st_gid) != (os.geteuid(), os.getegid()):
                    os.chown(new.name, stat.st_uid, stat.st_gid)
            os.replace(new.name, self._path)
        except OSError as error:
            raise KeysError(f"{self._path} cannot be written: {error}") from None


class RedisKeys:
    """All operations raise redis.RedisError when Redis cannot be reached."""

    def __init__(self, client: "redis.asyncio.Redis"):
        self._redis: Any = client
        self._add = self._redis.register_script(_ADD)

    async def find(self, digest: str) -> Key | None:
        """The key that may have this SHA-256. Raises KeysError."""
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


def _decoded(record: bytes) -> Key:
    try:
        return _decoder.decode(record)
    except msgspec.MsgspecError as error:
        raise KeysError(f"{REDIS_KEY} in Redis: {error}") from None
