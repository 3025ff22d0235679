"""
Workers as Redis sees them: what they said of themselves. And as gateways see them: what they say
first, and what they need no more.
"""

from typing import Any

from dalston.orchestrator.capacity.slots import Slots
from dalston.orchestrator.capacity.workers import Registration, Served
from dalston.orchestrator.protocol.messages import (
    PROTOCOL_VERSION,
    Final,
    SessionBegin,
    SessionConfig,
    Snapshot,
    serialize,
)

PREFIX = "dalston:realtime:"
BEGIN = serialize(
    SessionBegin(
        session_id="s", protocol_version=PROTOCOL_VERSION, config=SessionConfig(), warnings=[]
    )
)


def final(number: int) -> str:
    """Of the segment with this number."""
    return serialize(
        Final(
            segment_id=f"seg_{number:04d}",
            text=f"sentence {number}",
            start=float(number),
            end=number + 0.5,
            confidence=0.9,
            language="en",
            processing_ms=1,
        )
    )


def snapshot(position: int, next_segment: int = 0) -> str:
    """Of a session that needs nothing before `position`."""
    return serialize(
        Snapshot(
            session_id="s",
            epoch=1,
            position=position,
            replay_from=position,
            controls=0,
            config=SessionConfig(),
            detected_language=None,
            next_segment=next_segment,
            speech_samples=0,
            segments=[],
        )
    )


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


def served(**epochs: int) -> dict[str, Served]:
    """Sessions as their worker tells of them."""
    return {id: Served(epoch, "fast", "en", 1.5) for id, epoch in epochs.items()}


async def register(slots: Slots, *workers: Registration) -> None:
    for registration in workers:
        await slots.heartbeat(registration, {})


async def active(slots: Slots) -> dict[str, int]:
    return {record.worker_id: record.active_sessions for record in await slots.workers()}
