"""
Workers as Redis sees them: what they said of themselves.
"""

from typing import Any

from dalston.orchestrator.slots import Registration, Slots

PREFIX = "dalston:realtime:"


def worker(id: str, capacity: int = 4, **fields: Any) -> Registration:
    given: dict[str, Any] = {
        "worker_id": id,
        "instance": f"{id}-process",
        "endpoint": f"ws://{id}:9000",
        "status": "ready",
        "capacity": capacity,
        "models": ["fast", "accurate"],
        "models_loaded": ["demo"],
        "languages": ["en", "auto"],
        "version": "0.1.0",
        **fields,
    }
    return Registration(**given)


async def register(slots: Slots, *workers: Registration) -> None:
    for registration in workers:
        await slots.heartbeat(registration, {})


async def active(slots: Slots) -> dict[str, int]:
    return {record.worker_id: record.active_sessions for record in await slots.workers()}
