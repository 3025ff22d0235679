"""
Workers as Redis knows them: what they say of themselves, and what is on record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Status = Literal["ready", "busy", "draining", "offline"]


@dataclass(frozen=True)
class Registration:
    """What a worker says of itself with each heartbeat."""

    worker_id: str
    instance: str  # of this process: tells it from another with the same id
    endpoint: str
    status: Literal["ready", "draining"]
    capacity: int
    models: Sequence[str]  # variants
    models_loaded: Sequence[str]  # checkpoints, without those of unloaded models
    languages: Sequence[str]
    version: str
    gpu_memory_used: str | None = None  # "4.2GB"; absent without a GPU
    gpu_memory_total: str | None = None
    asleep: Sequence[str] = ()  # variants that are loaded when a session comes
    fast_share: float = 1.0  # of a slot, that a session of `fast` takes
    running_s: float = 0.0  # since its process began
    checkpoints: Mapping[str, str] = field(default_factory=dict[str, str])  # of each variant

    def fields(self) -> dict[str, str | int | float]:
        """Of its hash in Redis, besides those that Redis itself counts."""
        fields: dict[str, str | int | float] = {
            "status": self.status,
            "capacity": self.capacity,
            "fast_share": self.fast_share,
            "models": json.dumps(list(self.models)),
            "models_loaded": json.dumps(list(self.models_loaded)),
            "models_asleep": json.dumps(list(self.asleep)),
            "checkpoints": json.dumps(dict(self.checkpoints)),
            "languages_supported": json.dumps(list(self.languages)),
            "version": self.version,
        }
        if self.gpu_memory_used:
            fields["gpu_memory_used"] = self.gpu_memory_used
        if self.gpu_memory_total:
            fields["gpu_memory_total"] = self.gpu_memory_total
        return fields


@dataclass(frozen=True)
class Served:
    """A session as its worker has it; told with each heartbeat."""

    epoch: int
    variant: str
    language: str = "auto"  # the one that is spoken, once it is known
    audio_s: float = 0.0  # received


@dataclass(frozen=True)
class WorkerRecord:
    worker_id: str
    status: Status
    capacity: int
    active_sessions: int
    endpoint: str
    models: list[str]
    heartbeat_at: float = 0.0  # by Redis's clock
    asleep: Sequence[str] = ()  # of the models
    used: float = 0.0  # slots: a session of `fast` may take less than one
    gpu: bool = False  # its models have one
    languages: Sequence[str] = ()  # "auto" among them
    checkpoints: Mapping[str, str] = field(default_factory=dict[str, str])  # of each model

    @property
    def available(self) -> int:
        """Slots that are free."""
        return max(0, int(self.capacity - self.used + 1e-3))


def record(worker_id: str, fields: Mapping[str, str]) -> WorkerRecord | None:
    """The record in a worker's hash; None if none can be made of it, whoever wrote it."""
    try:
        status, capacity = fields["status"], int(fields["capacity"])
        active = int(fields.get("active_sessions", 0))
        models, asleep = _names(fields["models"]), _names(fields.get("models_asleep", "[]"))
        if status not in get_args(Status):
            return None
        return WorkerRecord(
            worker_id,
            status,  # pyright: ignore[reportArgumentType]
            capacity,
            active,
            fields["endpoint"],
            models,
            float(fields.get("heartbeat_at", 0.0)),
            asleep,
            float(fields.get("used", active)),
            "gpu_memory_total" in fields,
            _names(fields.get("languages_supported", "[]")),
            _checkpoints(fields.get("checkpoints", "{}")),
        )
    except (KeyError, ValueError, OverflowError, RecursionError):
        return None


def _checkpoints(text: str) -> dict[str, str]:
    """Raises ValueError."""
    checkpoints = json.loads(text)
    if not isinstance(checkpoints, dict):
        raise ValueError("no object")
    return {str(name): str(id) for name, id in checkpoints.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _names(text: str) -> list[str]:
    """Raises ValueError."""
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):  # pyright: ignore[reportUnknownVariableType]
        raise ValueError("no list of names")
    return names  # pyright: ignore[reportUnknownVariableType]
