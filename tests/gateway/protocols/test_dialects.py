"""
What holds for the protocol of every client: nothing that a client sends breaks it, nothing that a
session says is unknown to it, and it matters to nobody how audio was cut.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dialects import END

from dalston.gateway.protocols import PROTOCOLS
from dalston.gateway.protocols.protocol import (
    Asked,
    ClientError,
    ClientProtocol,
    Opening,
    Reply,
)
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    Ack,
    ConfigUpdated,
    Eager,
    Error,
    ErrorCode,
    Final,
    Flushed,
    Frame,
    Partial,
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
    Word,
    parse,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ParameterError

NATIVE = "/v1/audio/transcriptions/stream"
THEIRS = sorted(PROTOCOLS.keys() - {NATIVE})
# The query with which their clients come.
QUERIES = {
    "/v1/listen": "model=nova-3&encoding=linear16&sample_rate=16000&interim_results=true",
    "/v2/listen": "model=flux-general-en&encoding=linear16&sample_rate=16000",
    "/v1/realtime": "intent=transcription&model=gpt-4o-transcribe",
    "/v1/speech-to-text/realtime": "model_id=scribe_v2_realtime&commit_strategy=vad",
}
# What their clients say before they send audio.
BEGINNINGS = {
    "/twilio": '{"event":"start","start":{"callSid":"CA1","tracks":["inbound"]}}',
    "/vapi": '{"type":"start","encoding":"linear16","container":"raw","channels":2}',
    "/ws/transcribe": '{"type":"start_recording"}',
}
WORDS = [Word("Hello", 0.4, 0.8, 0.9), Word("there.", 0.9, 1.3, 0.8)]
FINAL = Final(
    segment_id="seg_0000",
    text="Hello there.",
    start=0.3,
    end=1.4,
    confidence=0.9,
    language="en",
    processing_ms=80,
    words=WORDS,
)
SAID: Sequence[ServerMessage] = (
    Queued(1, 30.0),
    SessionBegin(session_id="sess_1", protocol_version="1.0", config=SessionConfig(), warnings=[]),
    Ack(1.0, 1.0, 0.0),
    SpeechStart(0.4),
    Partial("seg_0000", "Hello the", 5, 0.3, 1.0),
    Warn(code="processing_lag", message="late", lag_seconds=3.5),
    Eager(segment_id="seg_0000", text="Hello there.", start=0.3, end=1.3, language="en"),
    Withdrawn("seg_0000"),
    SpeechEnd(1.4),
    FINAL,
    ConfigUpdated(SessionConfig()),
    Flushed(2.0),
    Pong(),
    Error(code="invalid_audio", message="no numbers", recoverable=True),
    Error(code="internal_error", message="a fault", recoverable=False),
    SessionTerminated(session_id="sess_1", reason="worker_lost", recoverable=True),
    END,
)


def opened(path: str, query: str | None = None, **headers: str) -> ClientProtocol:
    given = QUERIES.get(path, "") if query is None else query
    pairs = [tuple(pair.split("=", 1)) for pair in given.split("&") if pair]
    return PROTOCOLS[path](Opening(pairs, headers))  # pyright: ignore[reportArgumentType]


def texts(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in frames]


@pytest.mark.parametrize("path", PROTOCOLS)
def test_every_message_of_a_session_can_be_told(path: str) -> None:
    assert {type(message) for message in SAID} | {Snapshot} == set(get_args(ServerMessage))
    protocol = opened(path)
    protocol.greeting()
    protocol.asked()
    for message in SAID:
        for frame in protocol.say(serialize(message)):
            assert isinstance(json.loads(frame), dict)


@pytest.mark.parametrize("path", THEIRS)
def test_what_was_said_reaches_every_client(path: str) -> None:
    protocol = opened(path)
    protocol.asked()
    told = [frame for message in SAID for frame in protocol.say(serialize(message))]
    assert any("hello there" in str(frame).lower() for frame in told)


@pytest.mark.parametrize("path", PROTOCOLS)
@pytest.mark.parametrize("code", [*CloseCode, 1006, 3999, 4999])
def test_every_reason_has_a_close_code_that_may_be_sent(path: str, code: int) -> None:
    sent = opened(path).close_code(code)
    assert sent in (1000, 1001, 1006, *range(1007, 1015), *range(3000, 5000))
    if path != NATIVE:
        assert sent != 1006


def events() -> st.SearchStrategy[Any]:
    """JSON that looks somewhat like a client's."""
    kinds = st.sampled_from(
        "input_audio_chunk input_audio_buffer.append input_audio_buffer.commit session.update "
        "input_audio_buffer.clear transcription_session.update Finalize KeepAlive CloseStream "
        "Configure ForceEndTurn start_recording stop_recording configure ping eof start media stop "
        "linear16 raw inbound".split()
    )
    names = st.sampled_from(
        "type message_type audio audio_base_64 commit session config keyterms thresholds eof "
        "turn_detection transcription format input include event_id sample_rate language event "
        "start media payload track tracks timestamp callSid encoding channels".split()
    )
    leaves = kinds | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
        max_leaves=8,
    )


@pytest.mark.parametrize("path", PROTOCOLS)
@given(
    frames=st.lists(st.text() | st.binary() | events().map(json.dumps), max_size=6),
    query=st.lists(
        st.tuples(
            st.sampled_from(
                "model encoding sample_rate language endpointing keyterm commit_strategy "
                "audio_format vad_threshold utterance_end_ms intent eot_threshold".split()
            ),
            st.sampled_from("en auto 16000 0.5 pcm_16000 linear16 -1 nan x".split()) | st.text(),
        ),
        max_size=4,
    ),
)
def test_nothing_that_a_client_sends_breaks_its_protocol(
    path: str, frames: list[Frame], query: list[tuple[str, str]]
) -> None:
    try:
        protocol = PROTOCOLS[path](Opening(query, {}))
        protocol.greeting()
        protocol.asked()
        for frame in frames:
            for part in protocol.receive(frame):
                if isinstance(part, Reply):
                    assert isinstance(json.loads(part.frame), dict)
                elif isinstance(part, str) and path != NATIVE:
                    parse(part)  # a message of ours
            protocol.asked()
    except (ClientError, ParameterError):
        pass


def wrapped(path: str) -> Callable[[bytes], Frame]:
    """How the client of a protocol sends audio."""

    def realtime(data: bytes) -> str:
        audio = base64.b64encode(data).decode()
        return json.dumps({"type": "input_audio_buffer.append", "audio": audio})

    def scribe(data: bytes) -> str:
        audio = base64.b64encode(data).decode()
        return json.dumps({"message_type": "input_audio_chunk", "audio_base_64": audio})

    def twilio(data: bytes) -> str:
        audio = base64.b64encode(data).decode()
        return json.dumps({"event": "media", "media": {"track": "inbound", "payload": audio}})

    speaking = {
        "/twilio": twilio,
        "/v1/realtime": realtime,
        "/v1/speech-to-text/realtime": scribe,
    }
    return speaking.get(path, bytes)


def pieces(audio: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(audio), *(cut % (len(audio) + 1) for cut in cuts)})
    return (audio[a:b] for a, b in pairwise(places))


@pytest.mark.parametrize("path", PROTOCOLS)
@given(audio=st.binary(min_size=1, max_size=400), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_it_does_not_matter_how_audio_is_cut(path: str, audio: bytes, cuts: list[int]) -> None:
    protocol, wrap = opened(path), wrapped(path)
    protocol.asked()
    if path in BEGINNINGS:
        protocol.receive(BEGINNINGS[path])
    meaning = [part for piece in pieces(audio, cuts) for part in protocol.receive(wrap(piece))]
    assert b"".join(part for part in meaning if isinstance(part, bytes)) == audio


ERRORS = [
    Error(code=code, message=f"why: {code}", recoverable=False) for code in get_args(ErrorCode)
]


@pytest.mark.parametrize("path", THEIRS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_whoever_is_refused_is_told_why_in_their_own_way(path: str, error: Error) -> None:
    protocol = opened(path)
    if protocol.opens_at_once:
        assert "why: " in str(protocol.say(serialize(error)))
    else:
        answer = protocol.denial(error, "req_1")
        assert 400 <= answer.status < 600
        assert f"why: {error.code}" in str(msgspec.json.decode(answer.body))


@pytest.mark.parametrize("path", THEIRS)
def test_what_a_client_asks_for_is_what_a_session_can_do(path: str) -> None:
    protocol = opened(path)
    asked = protocol.asked()
    if asked is None:
        if path in BEGINNINGS:
            protocol.receive(BEGINNINGS[path])
        else:
            protocol.receive(wrapped(path)(bytes(24_000)))
        asked = protocol.asked()
    assert isinstance(asked, Asked)
    msgspec.convert(msgspec.to_builtins(asked.config), SessionConfig)
