"""
What clients of other services are told of each message of a session, and what they are not, is what
the table in docs/compatibility.md says.
"""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from support.dialects import END, Dialect, final, partial

from dalston.gateway.protocols import PROTOCOLS
from dalston.orchestrator.protocol.messages import (
    Ack,
    ConfigUpdated,
    Eager,
    Error,
    Flushed,
    Pong,
    Queued,
    ServerMessage,
    SessionBegin,
    SessionConfig,
    SessionTerminated,
    Snapshot,
    SpeechEnd,
    SpeechStart,
    Warn,
    Withdrawn,
)

PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"
NAME = re.compile(r"`([^`]+)`")
# Of each column: the path, and queries and first frames with which all is told that there is.
_FLUX = "model=flux-general-en&eager_eot_threshold=0.4"
_SCRIBE = "model_id=scribe_v2_realtime&include_timestamps=true&commit_strategy="
_MANUAL = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
_VAPI = {
    "type": "start",
    "encoding": "linear16",
    "container": "raw",
    "sampleRate": 16000,
    "channels": 1,
}
COLUMNS: dict[str, tuple[str, list[tuple[str, list[Any]]]]] = {
    "OpenAI": (
        "/v1/realtime",
        [("", []), ("", [{"type": "session.update", "session": _MANUAL}])],
    ),
    "ElevenLabs": (
        "/v1/speech-to-text/realtime",
        [(_SCRIBE + "vad", []), (_SCRIBE + "manual", [])],
    ),
    "Deepgram": (
        "/v1/listen",
        [("encoding=linear16&interim_results=true&vad_events=true&utterance_end_ms=1000", [])],
    ),
    "Flux": ("/v2/listen", [(_FLUX, [])]),
    "recordings": ("/ws/transcribe", [("", [{"type": "start_recording"}])]),
    "vosk": ("/vosk", [("", [])]),
    "Vapi": ("/vapi", [("", [_VAPI])]),
}
# A session in which everything is said.
SAID: dict[str, ServerMessage] = {
    "session.queued": Queued(1, 30.0),
    "session.begin": SessionBegin(
        session_id="sess_1", protocol_version="1.0", config=SessionConfig(), warnings=[]
    ),
    "vad.speech_start": SpeechStart(0.4),
    "transcript.partial": partial(0, "Hello the", "Hello", 0.3, 1.0),
    "transcript.eager": Eager(
        segment_id="seg_0000", text="Hello there.", start=0.3, end=1.3, language="en"
    ),
    "transcript.withdrawn": Withdrawn("seg_0000"),
    "vad.speech_end": SpeechEnd(1.4),
    "transcript.final": final(0, "Hello there.", 0.3, 1.4),
    "ack": Ack(3.0, 3.0, 1.4),
    "config.updated": ConfigUpdated(SessionConfig()),
    "flushed": Flushed(3.0),
    "pong": Pong(),
    "warning": Warn(code="processing_lag", message="late"),
    "error after which it goes on": Error(code="invalid_audio", message="no", recoverable=True),
    "session.end": END,
    "error that ends the session": Error(code="internal_error", message="no", recoverable=False),
    "session.terminated": SessionTerminated(
        session_id="sess_1", reason="worker_lost", recoverable=False
    ),
}


def table() -> dict[str, dict[str, set[str]]]:
    """Of each message, by column: the names that stand there."""
    text = PAGE.read_text("utf-8").split("## What is told, and what is not")[1]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head[1:] == list(COLUMNS)
    found = dict[str, dict[str, set[str]]]()
    for message, *cells in rows:
        told = [set(NAME.findall(cell)) for cell in cells]
        assert all(names or cell == "–" for names, cell in zip(told, cells, strict=True)), message
        found[message.replace("`", "")] = dict(zip(COLUMNS, told, strict=True))
    return found


def name(frame: dict[str, Any]) -> str:
    """What a frame is called in its protocol."""
    kind = frame.get("event") or frame.get("message_type") or frame.get("type")
    return (
        kind.rpartition(".")[2] if kind else next(iter(frame.keys() & {"partial", "text", "error"}))
    )


def told(column: str) -> dict[str, set[str]]:
    """Of each message: what a client is told of it at once, or when it sends audio next."""
    path, ways = COLUMNS[column]
    found = {message: set[str]() for message in SAID}
    for query, first in ways:
        dialect = Dialect(PROTOCOLS[path], query)
        dialect.protocol.asked()
        for frame in first:
            dialect.receive(frame)
        before: dict[str, Any] = {}
        for message, said in SAID.items():
            frames = dialect.say(said)
            if column == "vosk":  # each chunk of audio is answered, if by nothing new
                (answer,) = [part for part in dialect.receive(bytes(320)) if isinstance(part, dict)]
                frames += [answer] if answer not in (before, {"partial": ""}) else []
                before = answer
            found[message] |= set(map(name, frames))
    return found


def test_the_table_has_every_message_that_a_session_can_say() -> None:
    kinds = {kind.__struct_config__.tag for kind in get_args(ServerMessage)}
    assert {message.split()[0] for message in table()} == kinds
    assert {type(said) for said in SAID.values()} | {Snapshot} == set(get_args(ServerMessage))
    snapshot = table()["session.snapshot"]  # is for gateways alone: no protocol is given one
    assert not any(snapshot.values())


@pytest.mark.parametrize("column", COLUMNS)
def test_what_is_told_is_what_the_table_says(column: str) -> None:
    rows = table()
    assert told(column) == {message: rows[message][column] for message in SAID}
