"""
What a gateway counts, for Prometheus: every metric, with its help and its buckets.

Nothing is counted for a frame of audio. What is true of the whole deployment (workers, capacity,
the line) is looked up in Redis when somebody asks, and every gateway tells the same of it.
docs/operations.md lists all of them.
"""

import time
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Receive, Scope, Send

from dalston.orchestrator.capacity.slots import NoCapacity, TooMany
from dalston.orchestrator.capacity.workers import WorkerRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # a second line for each, with the time of the first
_EVENTS = CollectorRegistry()
ProcessCollector(registry=_EVENTS)

_ASKING = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
_WAITING = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0)

SESSIONS = Counter(
    "dalston_realtime_sessions",
    "Sessions that got a slot, resumed ones included.",
    registry=_EVENTS,
)
ALLOCATION_TIME = Histogram(
    "dalston_realtime_allocation_time_seconds",
    "From asking for a slot to having it; time in line included.",
    buckets=_ASKING,
    registry=_EVENTS,
)
ALLOCATION_FAILURES = Counter(
    "dalston_realtime_allocation_failures",
    "Callers who got no slot: no_workers, draining, full (also after a time in line), key or "
    "address (has as many as it may), redis (not reached), unreachable (no worker answered).",
    ["reason"],
    registry=_EVENTS,
)
QUEUE_WAIT = Histogram(
    "dalston_realtime_queue_wait_seconds",
    "Time in line, by how it ended: served, refused, or gone (the caller left).",
    ["outcome"],
    buckets=_WAITING,
    registry=_EVENTS,
)
TAKEOVERS = Counter(
    "dalston_realtime_takeovers",
    "Sessions that had to leave a worker: why (lost, drain) and whether another took them (taken) "
    "or none did in time (failed).",
    ["why", "outcome"],
    registry=_EVENTS,
)
TAKEOVER_TIME = Histogram(
    "dalston_realtime_takeover_seconds",
    "From when a worker is known to be lost until another has begun its session.",
    buckets=_WAITING,
    registry=_EVENTS,
)
RESUMED = Counter(
    "dalston_realtime_sessions_resumed",
    "Sessions that a client came back to.",
    registry=_EVENTS,
)
LEASES_EXPIRED = Counter(
    "dalston_realtime_leases_expired",
    "Slots that came back because nobody renewed them.",
    registry=_EVENTS,
)
ERRORS = Counter(
    "dalston_realtime_errors",
    "Errors that clients were told, by code (docs/protocol.md).",
    ["code"],
    registry=_EVENTS,
)
REFUSED = Counter(
    "dalston_realtime_connections_refused",
    "WebSockets that were not opened: gateway or address (has as many as it may).",
    ["reason"],
    registry=_EVENTS,
)
HELD_TOO_MUCH = Counter(
    "dalston_realtime_held_too_much",
    "Sessions that were ended since all together held too much, and they most.",
    registry=_EVENTS,
)
TASK_FAILURES = Counter(
    "dalston_realtime_task_failures",
    "Times a task that is done by the clock failed, and went on (the log says why).",
    ["task"],
    registry=_EVENTS,
)
CLOSED = Counter(
    "dalston_realtime_connections_closed",
    "Connections that ended, by the code we closed with; client is one that left.",
    ["code"],
    registry=_EVENTS,
)


class Allocation:
    """A slot is asked for, from entering to leaving the context."""

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._waiting_since: float | None = None

    def waits(self) -> None:
        """In line."""
        self._waiting_since = self._waiting_since or time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        now, outcome = time.monotonic(), "gone"
        if error is None:
            outcome = "served"
            ALLOCATION_TIME.observe(now - self._began)
        elif isinstance(error, NoCapacity | TooMany | RedisError):
            outcome = "refused"
            ALLOCATION_FAILURES.labels(_reason(error)).inc()
        if self._waiting_since is not None:
            QUEUE_WAIT.labels(outcome).observe(now - self._waiting_since)


def _reason(error: NoCapacity | TooMany | RedisError) -> str:
    if isinstance(error, NoCapacity):
        return error.reason
    return error.of if isinstance(error, TooMany) else "redis"


class Takeover:
    """A session has to leave its worker: from when that is known."""

    def __init__(self, why: Literal["lost", "drain"]):
        self._why, self._began = why, time.monotonic()

    def taken(self) -> None:
        TAKEOVERS.labels(self._why, "taken").inc()
        TAKEOVER_TIME.observe(time.monotonic() - self._began)

    def failed(self) -> None:
        TAKEOVERS.labels(self._why, "failed").inc()


@dataclass(frozen=True)
class GatewayState:
    """Of a gateway at this moment, and of the deployment if Redis tells."""

    connections: int
    sessions: int
    held_bytes: int
    draining: bool
    redis_errors: int
    workers: Sequence[WorkerRecord] | None
    waiting: int  # in line


@dataclass(frozen=True)
class _Now(Collector):
    """What is not counted but looked up."""

    state: GatewayState

    def collect(self) -> Iterator[Metric]:
        state = self.state
        gauges: list[tuple[str, str, float]] = [
            ("connections", "Clients that are connected, in line or not.", state.connections),
            ("sessions_active", "Sessions of this gateway.", state.sessions),
            ("held_bytes", "Bytes held of what callers sent, and of each frame.", state.held_bytes),
            ("draining", "1 if it takes no new sessions because it ends.", state.draining),
        ]
        if state.workers is not None:
            ready = [worker for worker in state.workers if worker.status in ("ready", "busy")]
            total, used = (
                sum(worker.capacity for worker in ready),
                sum(worker.used for worker in state.workers),
            )
            gauges += [
                ("workers_total", "Workers on record, lost ones included.", len(state.workers)),
                ("workers_ready", "Workers that take sessions, or would if not full.", len(ready)),
                ("capacity_total", "Slots of the workers that are ready.", total),
                ("capacity_used", "Slots that are taken.", used),
                ("queue_length", "Callers in line.", state.waiting),
            ]
        for name, help, value in gauges:
            yield GaugeMetricFamily(f"dalston_realtime_{name}", help, value)
        yield CounterMetricFamily(
            "dalston_realtime_redis_errors",
            "Operations on slots that Redis failed.",
            state.redis_errors,
        )


def page(state: GatewayState) -> bytes:
    """In Prometheus's text format."""
    return generate_latest(_EVENTS) + generate_latest(_Now(state))


def with_metrics(app: ASGIApp) -> ASGIApp:
    """Counts how connections end."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return await app(scope, receive, send)
        closed = "client"

        async def send_counted(message: MutableMapping[str, Any]) -> None:
            nonlocal closed
            if message["type"] == "websocket.close":
                closed = str(message.get("code", 1000))
            await send(message)

        try:
            await app(scope, receive, send_counted)
        except Exception:
            closed = "1011"
            raise
        finally:
            CLOSED.labels(closed).inc()

    return counted
