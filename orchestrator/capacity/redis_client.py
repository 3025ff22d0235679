"""
The way to Redis: one server, or the one that Sentinels name.

Somebody waits for every answer of Redis: if it is gone or hangs, that is known within seconds.
"""

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError

CONNECTIONS = 16  # of one process; an operation takes a fraction of a millisecond
ANSWER_S = 1.0  # a Redis that takes longer hangs
POOL_S = 5.0  # until one of the connections is free: many callers at once are no fault of Redis
SENTINEL_SCHEME = "redis+sentinel"
_SENTINEL_PORT = 26379


class UnsupportedRedis(ValueError):
    """This Redis, or this address of one, will not do; says why."""


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
        with _resets_told():
            return await connection.read_response(*args, **options)


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
        # A connection from before Redis was started again breaks at first use. To ask twice does
        # no harm: what we ask for is told by session and epoch.
        "retry": Retry(NoBackoff(), 1, (ConnectionError,)),
    }
    limits: dict[str, Any] = {"max_connections": CONNECTIONS, "timeout": POOL_S, **timeouts}
    if not url.startswith(f"{SENTINEL_SCHEME}://"):
        pool: Any = redis.asyncio.BlockingConnectionPool
        return _mend(redis.asyncio.Redis.from_pool(pool.from_url(url, **limits)))
    sentinels, service, master = _sentinel_address(url)
    manager: Any = Sentinel(sentinels, sentinel_kwargs=timeouts)
    for watcher in manager.sentinels:
        _mend(watcher)
    return _mend(
        manager.master_for(service, connection_pool_class=_SentinelPool, **master, **limits)
    )


def _sentinel_address(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """The Sentinels, the service they watch, and what a connection to its master needs."""
    form = f"{SENTINEL_SCHEME}://HOST:PORT,HOST:PORT/SERVICE/DB"
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    sentinels = list[tuple[str, int]]()
    for address in hosts.split(","):
        host, _, port = address.partition(":")
        if not host or not (port or str(_SENTINEL_PORT)).isdecimal():
            raise UnsupportedRedis(f"REDIS_URL: {address!r} is no Sentinel; it is {form}")
        sentinels.append((host, int(port or _SENTINEL_PORT)))
    if not service or not (db or "0").isdecimal() or parse_qsl(parts.query):
        raise UnsupportedRedis(f"REDIS_URL: an address with Sentinels is {form}")
    user, _, password = credentials.partition(":")
    master: dict[str, Any] = {"db": int(db or 0)}
    if password:
        master |= {"username": user or None, "password": password}
    return sentinels, service, master


async def refuse_cluster(client: "redis.asyncio.Redis") -> None:
    """Raises UnsupportedRedis for a Redis Cluster: one script needs keys that it would spread."""
    untyped: Any = client
    server = await untyped.info("cluster")
    if server.get("cluster_enabled"):
        raise UnsupportedRedis(
            "REDIS_URL is a Redis Cluster, which is not supported: the keys of one operation would "
            "lie on several servers. Use one Redis, or Redis with Sentinel."
        )
