"""
`dalston keys`: make, list and revoke API keys, in Redis or in a file; make tokens of them.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from dalston.gateway.access import tokens
from dalston.gateway.access.keys import FileKeys, Key, RedisKeys, Scope, make
from dalston.gateway.access.secret_file import KeysError
from dalston.gateway.access.tokens import TokenRefused
from dalston.gateway.calls.ending import end_session
from dalston.orchestrator.capacity.slots import Slots, redis_client
from dalston.orchestrator.process.environment import with_password

ENDING_S = 15.0  # for sessions to finish what was said
WIDE = 200  # letters of a line that a program reads


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
            client = _client(url)
            try:
                yield RedisKeys(client)
            finally:
                await client.aclose()
        else:
            raise KeysError(
                "where are the keys? give --file or --redis-url, or set DALSTON_API_KEYS, REDIS_URL"
            )


def add(
    place: Place, name: str, sessions: int, scopes: Sequence[str], expires: datetime | None
) -> int:
    """Make a key and print it; the exit status."""

    async def work() -> int:
        text, key = make(name, sessions, scopes, expires)
        async with place.keys() as keys:
            await keys.add(key)
        print(f"the key of {name}, which is shown this once:", file=sys.stderr)
        print(text)
        return 0

    return _run(work)


def token(place: Place, name: str, seconds: int, scopes: Sequence[Scope]) -> int:
    """Make a token of a key and print it; the exit status."""

    async def work() -> int:
        async with place.keys() as keys:
            key = next((key for key in await keys.all() if key.name == name), None)
            if key is None:
                raise KeysError(f"there is no key named {name!r}")
            text, claims = await tokens.issued(keys, key, seconds, scopes)
        expires = datetime.fromtimestamp(claims.expires, UTC)
        print(f"a token of {name}, good until {expires:%H:%M:%S} UTC:", file=sys.stderr)
        print(text)
        return 0

    return _run(work)


def rotate(place: Place, at_once: bool) -> int:
    """Sign tokens with something new; the exit status."""

    async def work() -> int:
        async with place.keys() as keys:
            await tokens.rotate(keys, at_once)
        before = "worth nothing now" if at_once else "good until their own end"
        print(f"tokens are signed anew; those of before are {before}", file=sys.stderr)
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


def revoke(place: Place, name: str, end_sessions: bool) -> int:
    """Make a key useless; the exit status."""

    async def work() -> int:
        url = place.redis_url or os.environ.get("REDIS_URL")
        if end_sessions and not url:
            raise KeysError("set REDIS_URL: it is there that gateways say which sessions they have")
        async with place.keys() as keys:
            if not await keys.revoke(name):
                raise KeysError(f"there is no key named {name!r}")
        if not (end_sessions and url):
            print(f"{name} is revoked: no new sessions; those that run go on", file=sys.stderr)
            return 0
        print(f"{name} is revoked: no new sessions", file=sys.stderr)
        return await _end_sessions(url, name)

    return _run(work)


async def _end_sessions(url: str, name: str) -> int:
    """End what runs with a key that is revoked; the exit status."""
    client = _client(url)
    slots = Slots(client)
    try:
        ids = await slots.sessions_of(name)
        await asyncio.gather(*(end_session(slots, id) for id in ids))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDING_S):
                while left := await slots.sessions_of(name):
                    await asyncio.sleep(0.05)
        left = await slots.sessions_of(name)
    finally:
        await client.aclose()
    print(f"{len(ids) - len(left)} sessions were ended", file=sys.stderr)
    for id in left:
        print(f"{id} was told to end, and still runs", file=sys.stderr)
    return 1 if left else 0


def _client(url: str) -> Redis:
    """Raises KeysError."""
    try:
        return redis_client(url)
    except ValueError as error:
        raise KeysError(f"the Redis URL: {error}") from None


def _print(keys: list[Key]) -> None:
    table = Table(box=None)
    for column in ("NAME", "SESSIONS", "SCOPES", "EXPIRES", "CREATED", "SHA-256"):
        table.add_column(column, no_wrap=True)
    for key in keys:
        table.add_row(
            key.name,
            str(key.sessions or "any"),
            ",".join(key.scopes),
            _expiry(key),
            key.created,
            f"{key.id}…",
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)


def _expiry(key: Key) -> str:
    if key.expires is None:
        return "never"
    when = key.expires.astimezone(UTC).isoformat(timespec="seconds")
    return f"{when} (over)" if key.expired(time.time()) else when


def _run(work: Callable[[], Awaitable[int]]) -> int:
    async def run() -> int:
        return await work()

    try:
        return asyncio.run(run())
    except (KeysError, TokenRefused, RedisError) as error:
        print(f"Redis: {error}" if isinstance(error, RedisError) else error, file=sys.stderr)
        return 1
