"""
`dalston keys`: make, list and revoke API keys, in Redis or in a file.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from dalston.gateway.access.keys import FileKeys, Key, KeysError, RedisKeys, make
from dalston.orchestrator.capacity.slots import redis_client
from dalston.orchestrator.process.environment import with_password


@dataclass(frozen=True)
class Place:
    """Where the keys are to be; if it is not said, where the gateway looks for them."""

    file: Path | None = None
    redis_url: str | None = None

    @contextlib.asynccontextmanager
    async def keys(self) -> AsyncGenerator[FileKeys | RedisKeys]:
        """Raises KeysError."""
        file, url = self.file, self.redis_url
        if file is None and url is None:
            told = os.environ.get("DALSTON_API_KEYS", "redis")
            file = Path(told) if told not in ("", "redis") else None
            url = with_password(os.environ.get("REDIS_URL", ""), os.environ.get("REDIS_PASSWORD"))
        if file is not None:
            yield FileKeys(file)
        elif url:
            try:
                client = redis_client(url)
            except ValueError as error:
                raise KeysError(f"the Redis URL: {error}") from None
            try:
                yield RedisKeys(client)
            finally:
                await client.aclose()
        else:
            raise KeysError(
                "where are the keys? give --file or --redis-url, or set DALSTON_API_KEYS, REDIS_URL"
            )


def add(place: Place, name: str, sessions: int) -> int:
    """Make a key and print it; the exit status."""

    async def work() -> int:
        text, key = make(name, sessions)
        async with place.keys() as keys:
            await keys.add(key)
        print(f"the key of {name}, which is shown this once:", file=sys.stderr)
        print(text)
        return 0

    return _run(work)


def show(place: Place) -> int:
    """Print what is kept of every key; the exit status."""

    async def work() -> int:
        async with place.keys() as keys:
            found = await keys.all()
        _print(found)
        return 0

    return _run(work)


def revoke(place: Place, name: str) -> int:
    """Make a key useless; the exit status."""

    async def work() -> int:
        async with place.keys() as keys:
            if not await keys.revoke(name):
                raise KeysError(f"there is no key named {name!r}")
        print(f"{name} is revoked: no new sessions; those that run go on", file=sys.stderr)
        return 0

    return _run(work)


def _print(keys: list[Key]) -> None:
    table = Table(box=None)
    for column in ("NAME", "SESSIONS", "CREATED", "SHA-256"):
        table.add_column(column)
    for key in keys:
        table.add_row(key.name, str(key.sessions or "any"), key.created, f"{key.id}…")
    Console(highlight=False).print(table)


def _run(work: Callable[[], Awaitable[int]]) -> int:
    async def run() -> int:
        return await work()

    try:
        return asyncio.run(run())
    except (KeysError, RedisError) as error:
        print(f"Redis: {error}" if isinstance(error, RedisError) else error, file=sys.stderr)
        return 1
