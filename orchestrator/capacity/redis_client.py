"""
The way to Redis: one server, or the one that Sentinels name.

Somebody waits for every answer of Redis: if it is gone or hangs, that is known within seconds.
"""

import asyncio
import contextlib
import re
from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, ResponseError

CONNECTIONS = 16  # of one process; an operation takes a fraction of a millisecond
ANSWER_S = 1.0  # a Redis that takes longer hangs
POOL_S = 5.0  # until one of the connections is free: many callers at once are no fault of Redis
SENTINEL_SCHEME = "redis+sentinel"
_SENTINEL_PORT = 26379
_FORMS = (
    "redis://USER:PASSWORD@HOST:PORT/DB, rediss:// the same with TLS, "
    "unix://USER:PASSWORD@/PATH?db=DB, "
    f"or {SENTINEL_SCHEME}://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB; signs like @ : / in a "
    "password are written as %40 %3A %2F"
)
# Why a Redis that answers writes nothing; a script tells it in the middle of a sentence.
_REFUSES = re.compile(r"(?:^|[\s-])(READONLY|OOM|MISCONF|NOREPLICAS) ")
_WHY = {
    "READONLY": "this Redis is a replica, which nobody can write to",
    "OOM": "the memory of Redis is used up (maxmemory), so it takes no writes",
    "MISCONF": "Redis cannot write to its disk, so it takes no writes (its own log says why)",
    "NOREPLICAS": "Redis has fewer replicas than min-replicas-to-write, so it takes no writes",
}


class UnsupportedRedis(ValueError):
    """This Redis, or this address of one, will not do; says why."""


class TakesNoWrites(ResponseError):
    """Redis answers, and refuses to write; says why."""


def _refusal(error: ResponseError) -> str | None:
    """The word for why nothing is written; None for any other error."""
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    if isinstance(error, OutOfMemoryError):
        return "OOM"
    found = _REFUSES.search(str(error))
    return found[1] if found else None


class _Connection:
    """What a connection of redis-py lacks; to be mixed into any kind of them."""

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        connection: Any = super()
        task = asyncio.current_task()
        cancelling = task.cancelling() if task else 0
        with _resets_told():
            await connection.send_packed_command(*args, **options)
        # The wait_for of Python 3.11 forgets that it was cancelled when it is done at that moment.
        if task and task.cancelling() > cancelling:
            await connection.disconnect(nowait=True)  # the answer is still to come
            raise asyncio.CancelledError

    async def read_response(self, *args: Any, **options: Any) -> Any:
        connection: Any = super()
        try:
            with _resets_told():
                return await connection.read_response(*args, **options)
        except ResponseError as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            if refusal == "READONLY":  # a new connection may lead to who is the master now
                await connection.disconnect(nowait=True)
                raise ConnectionError(_WHY[refusal]) from None
            raise TakesNoWrites(_WHY[refusal]) from None


@contextlib.contextmanager
def _resets_told() -> Generator[None]:
    """uvloop has an error of its own for a connection that the other end has reset."""
    try:
        yield
    except RuntimeError as error:
        if "handler is closed" not in str(error):
            raise
        raise ConnectionError(str(error)) from None


def _mend(client: "redis.asyncio.Redis") -> "redis.asyncio.Redis":
    pool: Any = client.connection_pool
    kind = pool.connection_class
    pool.connection_class = type(kind.__name__, (_Connection, kind), {})
    return client


class _SentinelPool(SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """Callers wait for a connection to the master, whichever server that is."""

    async def aclose(self) -> None:
        await super().aclose()
        manager: Any = self.sentinel_manager
        await manager.aclose()


def redis_client(url: str) -> "redis.asyncio.Redis":
    """A client whose callers wait for one of a few connections; the default refuses them.

    redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB names Sentinels; user and password
    are those of Redis. Raises UnsupportedRedis.
    """
    timeouts: dict[str, Any] = {
        "socket_timeout": ANSWER_S,
        "socket_connect_timeout": ANSWER_S,
        # Else each new connection reads redis-py's version from a file, to tell Redis of it. A
        # process that has no descriptors left fails at that with what is no error of Redis.
        "driver_info": None,
        # A connection from before Redis was started again breaks at first use. To ask twice does
        # no harm: what we ask for is told by session and epoch.
        "retry": Retry(NoBackoff(), 1, (ConnectionError,)),
    }
    limits: dict[str, Any] = {"max_connections": CONNECTIONS, "timeout": POOL_S, **timeouts}
    if not url.startswith(f"{SENTINEL_SCHEME}://"):
        pool: Any = redis.asyncio.BlockingConnectionPool
        try:
            return _mend(redis.asyncio.Redis.from_pool(pool.from_url(url, **limits)))
        except ValueError:  # it would quote what stands there, perhaps a password
            raise UnsupportedRedis(f"REDIS_URL cannot be read; it is {_FORMS}") from None
    sentinels, service, master = _sentinel_address(url)
    manager: Any = Sentinel(sentinels, sentinel_kwargs=timeouts)
    for watcher in manager.sentinels:
        _mend(watcher)
    return _mend(
        manager.master_for(service, connection_pool_class=_SentinelPool, **master, **limits)
    )


def _sentinel_address(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """The Sentinels, the service they watch, and what a connection to its master needs."""
    form = f"an address with Sentinels is {SENTINEL_SCHEME}://HOST:PORT,HOST:PORT/SERVICE/DB"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UnsupportedRedis(f"REDIS_URL: {form}") from None
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    sentinels = list[tuple[str, int]]()
    for number, address in enumerate(hosts.split(","), 1):
        host, _, port = address.partition(":")
        if not host or not (port or str(_SENTINEL_PORT)).isdecimal():
            # Not quoted: it may be a part of a password.
            raise UnsupportedRedis(f"REDIS_URL: Sentinel {number} in it is none; {form}")
        sentinels.append((host, int(port or _SENTINEL_PORT)))
    if not service or not (db or "0").isdecimal() or parse_qsl(parts.query):
        raise UnsupportedRedis(f"REDIS_URL: {form}")
    user, _, password = credentials.partition(":")
    master: dict[str, Any] = {"db": int(db or 0)}
    if password:
        master |= {"username": unquote(user) or None, "password": unquote(password)}
    return sentinels, service, master


async def look_at(client: "redis.asyncio.Redis") -> Mapping[str, Any]:
    """What this Redis says of itself.

    Raises UnsupportedRedis for a Redis Cluster: one script needs keys that it would spread.
    """
    untyped: Any = client
    about = await untyped.info()
    if about.get("cluster_enabled"):
        raise UnsupportedRedis(
            "REDIS_URL is a Redis Cluster, which is not supported: the keys of one operation would "
            "lie on several servers. Use one Redis, or Redis with Sentinel."
        )
    return about


def eviction(about: Mapping[str, Any]) -> str | None:
    """What is wrong if this Redis throws away keys by itself; None if it does not."""
    policy = about.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return (
        f"maxmemory-policy is {policy}: a Redis that runs short of memory throws away slots "
        "without a word, and more sessions begin than there is room for; set it to noeviction"
    )
