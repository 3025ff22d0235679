"""
A client's protocol by itself: what it makes of frames, and what it tells of messages.
"""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from dalston.gateway.protocols.protocol import Asked, ClientProtocol, Frame, Opening, Reply
from dalston.orchestrator.protocol.messages import (
    Final,
    Partial,
    Segment,
    ServerMessage,
    SessionConfig,
    SessionEnd,
    Stats,
    Word,
    segment_id,
    serialize,
)

END = SessionEnd(
    session_id="sess_1",
    reason="client_end",
    total_duration=2.0,
    total_audio_seconds=2.0,
    total_speech_duration=1.0,
    wall_seconds=2.1,
    transcript="Hello there.",
    segments=[Segment(0.3, 1.4, "Hello there.", "seg_0000")],
    stats=Stats(),
)


class Dialect:
    def __init__(
        self, protocol: Callable[[Opening], ClientProtocol], query: str = "", **headers: str
    ):
        pairs = parse_qsl(query, keep_blank_values=True)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.protocol = protocol(Opening(pairs, named, lambda: 1_764_500_000.0))

    def config(self) -> SessionConfig:
        asked = self.protocol.asked()
        assert isinstance(asked, Asked), "nothing was asked for"
        return asked.config

    def receive(self, frame: Frame | dict[str, Any]) -> list[Any]:
        """Audio as bytes, messages of ours as text, replies as what they hold."""
        sent = json.dumps(frame) if isinstance(frame, dict) else frame
        return [
            json.loads(part.frame) if isinstance(part, Reply) else part
            for part in self.protocol.receive(sent)
        ]

    def say(self, *messages: ServerMessage) -> list[dict[str, Any]]:
        return [
            json.loads(frame)
            for message in messages
            for frame in self.protocol.say(serialize(message))
        ]


def final(number: int, text: str, start: float, end: float, language: str = "en") -> Final:
    """A final whose words share its time."""
    spoken = text.split()
    each = (end - start) / max(1, len(spoken))
    words = [
        Word(word, round(start + at * each, 3), round(start + (at + 1) * each, 3), 0.9)
        for at, word in enumerate(spoken)
    ]
    return Final(
        segment_id=segment_id(number),
        text=text,
        start=start,
        end=end,
        confidence=0.9,
        language=language,
        processing_ms=80,
        words=words,
    )


def partial(number: int, text: str, stable: str, start: float, end: float) -> Partial:
    assert text.startswith(stable)
    return Partial(segment_id(number), text, len(stable), start, end)
