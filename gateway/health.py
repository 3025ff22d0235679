"""
What a gateway tells of its health: whether a new session would work, and what that depends on.
"""

import time
from importlib.metadata import version
from typing import Any

from redis.exceptions import RedisError

from dalston.gateway.calls.connections import Calls
from dalston.orchestrator.capacity.slots import Slots
from dalston.orchestrator.capacity.workers import WorkerRecord

_STARTED = time.monotonic()
VERSION = version("dalston")  # read once: later there may be no descriptor to read it with


def liveness() -> dict[str, str]:
    """For whoever restarts processes: that this one answers. It depends on nothing else."""
    return {"status": "alive"}


def verdict(calls: Calls, workers: list[WorkerRecord] | RedisError) -> dict[str, str]:
    """The status, and the reason if it is not healthy."""
    if isinstance(workers, RedisError):
        return {"status": "unhealthy", "reason": f"Redis: {workers}"}
    if calls.draining:
        return {"status": "draining"}
    if not any(worker.status in ("ready", "busy") for worker in workers):
        return {"status": "unhealthy", "reason": "no worker is ready"}
    return {"status": "healthy"}


async def health(slots: Slots, calls: Calls) -> tuple[dict[str, Any], int]:
    """Readiness, for load balancers: the body, and 200 only if a new session would work."""
    try:
        workers = await slots.workers()
    except RedisError as error:
        workers = error
    body: dict[str, Any] = dict(verdict(calls, workers))
    if body["status"] != "healthy":
        return body, 503
    return body | {"active_sessions": len(calls)}, 200


async def extended_health(slots: Slots, calls: Calls) -> tuple[dict[str, Any], int]:
    """For people: the same, and all that it depends on."""
    began = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        now = await slots.now()
        latency_ms = round(1000 * (time.perf_counter() - began), 2)
        workers = await slots.workers()
        found["queue_length"] = await slots.waiting()
        found["redis"] = {"reachable": True, "latency_ms": latency_ms}
        found["workers"] = [
            {
                "id": worker.worker_id,
                "status": worker.status,
                "capacity": worker.capacity,
                "active_sessions": worker.active_sessions,
                "models": worker.models,
                "asleep": worker.asleep,
                "heartbeat_age_seconds": round(now - worker.heartbeat_at, 1),
            }
            for worker in workers
        ]
    except RedisError as error:
        workers = error
        found = {"redis": {"reachable": False, "error": str(error)}}
    state = verdict(calls, workers)
    body: dict[str, Any] = {
        **state,
        "version": VERSION,
        "uptime_seconds": round(time.monotonic() - _STARTED, 1),
        "draining": calls.draining,
        "connections": len(calls),
        "active_sessions": calls.sessions,
        **found,
    }
    return body, 200 if state["status"] == "healthy" else 503


def recordings_status(workers: list[WorkerRecord], calls: Calls) -> dict[str, Any]:
    """Whether a recording would work, in the words of servers that clients of /ws/transcribe
    know."""
    serving = [worker for worker in workers if worker.status in ("ready", "busy")]
    return {
        "status": verdict(calls, workers)["status"],
        "websocket_ready": not calls.draining and any(worker.available for worker in serving),
        "model_loaded": any(set(worker.models) - set(worker.asleep) for worker in serving),
        "active_connections": len(calls),
        "gpu_available": any(worker.gpu for worker in serving),
    }
