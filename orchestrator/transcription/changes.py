"""
Settings of a session as it uses them, and how a client's changes are applied to them.
"""

from typing import Any

import msgspec

from dalston.orchestrator.protocol.messages import Configure, SessionConfig
from dalston.orchestrator.transcription.endpointer import (
    PAUSE,
    QUICK_PAUSE,
    Thresholds,
    TurnRules,
)
from dalston.triton.contract import SAMPLE_RATE


def thresholds(config: SessionConfig) -> Thresholds:
    """Of the endpointer, in samples."""
    turns = None
    if config.endpointing == "smart":
        shortest = config.turn_silence_ms * SAMPLE_RATE // 1000
        longest = config.max_silence_duration_ms * SAMPLE_RATE // 1000
        turns = TurnRules(config.turn_threshold, shortest, max(shortest, longest))
    return Thresholds(
        threshold=config.vad_threshold,
        min_speech=config.min_speech_duration_ms * SAMPLE_RATE // 1000,
        min_silence=config.min_silence_duration_ms * SAMPLE_RATE // 1000,
        manual=config.endpointing == "manual",
        turns=turns,
        pause=QUICK_PAUSE if config.endpointing == "manual" else PAUSE,
    )


def configured(config: SessionConfig, change: Configure) -> SessionConfig:
    """The settings after a change."""
    return msgspec.structs.replace(config, **changes(change))


def merged(first: Configure, then: Configure) -> Configure:
    """Two changes at the same place of the audio, as one."""
    return msgspec.structs.replace(first, **changes(then))


def changes(change: Configure) -> dict[str, Any]:
    """The fields that a change names."""
    return {
        name: value for name, value in msgspec.structs.asdict(change).items() if value is not None
    }
