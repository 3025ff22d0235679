"""
Deepgram's live protocol as a mapping.
"""

import json

import pytest
from msgspec.structs import replace
from support.dialects import END, Dialect, final, partial

from dalston.gateway.protocols.deepgram import Deepgram
from dalston.gateway.protocols.protocol import ClientError
from dalston.orchestrator.protocol.messages import (
    Ack,
    Error,
    Flushed,
    SessionBegin,
    SessionConfig,
    SpeechStart,
)
from dalston.orchestrator.protocol.parameters import ParameterError

USUAL = "model=nova-3&encoding=linear16&sample_rate=16000"
BEGIN = SessionBegin(
    session_id="sess_1",
    protocol_version="1.0",
    config=SessionConfig(model_id="base"),
    warnings=[],
)


def deepgram(query: str = "") -> Dialect:
    dialect = Dialect(Deepgram, f"{USUAL}&{query}")
    dialect.config()
    dialect.say(BEGIN)
    return dialect


def test_the_query_becomes_settings() -> None:
    config = deepgram(
        "channels=2&interim_results=true&endpointing=700&keyterm=Zara&keyterm=Helstone&language=de-AT"
    ).config()
    assert config == SessionConfig(
        channels=2,
        language="de",
        keywords=("Zara", "Helstone"),
        word_timestamps=True,
        flushed=True,
        min_silence_duration_ms=700,
    )


@pytest.mark.parametrize(
    ("query", "field", "value"),
    [
        ("", "language", "en"),
        ("", "interim_results", False),
        ("language=multi", "language_detection", "utterance"),
        ("language=multi", "language", "auto"),
        ("detect_language=true", "language", "auto"),
        ("keywords=Zara:2", "keywords", ("Zara",)),
        ("endpointing=10", "min_silence_duration_ms", 300),
        ("endpointing=false", "min_silence_duration_ms", 500),
        ("model=accurate", "model", "accurate"),
        ("utterance_end_ms=1000", "ack", True),
        ("redact=pci&redact=numbers", "redact", ("numbers",)),
        ("redact=ssn&redact=email", "redact", ("numbers", "emails")),
        ("colour=blue", "language", "en"),
    ],
)
def test_each_parameter_has_its_effect(query: str, field: str, value: object) -> None:
    assert getattr(deepgram(query).config(), field) == value


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("encoding=opus", "encoding='opus' is not possible here; it may be linear16"),
        ("language=tlh", "language='tlh' is not allowed"),
        ("utterance_end_ms=10", "utterance_end_ms='10' is not allowed; it may be 1000 to 5000"),
        ("callback=http://x", "callback is not possible here"),
        ("redact=name", "redact='name' is not possible here; it may be true, numbers"),
        ("interim_results=maybe", "interim_results='maybe' is not allowed"),
    ],
)
def test_what_cannot_be_done_is_refused(query: str, says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        Dialect(Deepgram, f"{USUAL}&{query}").config()


def test_an_utterance_is_interim_then_final_then_over() -> None:
    dialect = deepgram("interim_results=true&punctuate=true&vad_events=true&utterance_end_ms=1000")
    told = dialect.say(
        SpeechStart(0.4),
        partial(0, "Hello", "", 0.3, 0.9),
        final(0, "Hello, there.", 0.3, 1.3),
        Ack(2.0, 2.0, 1.3),
        Ack(2.4, 2.4, 1.3),
        Ack(9.0, 9.0, 1.3),
    )
    assert [what["type"] for what in told] == [
        "SpeechStarted",
        "Results",
        "Results",
        "UtteranceEnd",
    ]
    started, interim, last, over = told
    assert started["timestamp"] == 0.4
    assert (interim["is_final"], interim["speech_final"]) == (False, False)
    assert (last["is_final"], last["speech_final"], last["from_finalize"]) == (True, True, False)
    assert (last["start"], last["duration"]) == (0.3, 1.0)
    best = last["channel"]["alternatives"][0]
    assert (best["transcript"], best["confidence"]) == ("Hello, there.", 0.9)
    assert best["words"][0] == {
        "word": "hello",
        "punctuated_word": "Hello,",
        "start": 0.3,
        "end": 0.8,
        "confidence": 0.9,
    }
    assert last["metadata"]["request_id"] == "sess_1"
    assert over["last_word_end"] == 1.3


def test_speech_that_goes_on_is_no_end_of_an_utterance() -> None:
    dialect = deepgram("utterance_end_ms=1000")
    dialect.say(final(0, "Hello", 0.3, 1.3), SpeechStart(2.0))
    assert dialect.say(Ack(9.0, 9.0, 1.3)) == []


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("Hello, it's 5.30 — well-known!", "hello it's 5.30 well-known"),
        ("नमस्ते, दोस्तों।", "नमस्ते दोस्तों"),
        ("¿Qué? ¡Sí!", "qué sí"),
    ],
)
def test_without_punctuation_a_text_is_bare(text: str, bare: str) -> None:
    (told,) = deepgram().say(final(0, text, 0.0, 1.0))
    best = told["channel"]["alternatives"][0]
    assert best["transcript"] == bare
    assert "punctuated_word" not in best["words"][0]


def test_without_endpointing_no_speech_is_final() -> None:
    (told,) = deepgram("endpointing=false").say(final(0, "Hello", 0.0, 1.0))
    assert (told["is_final"], told["speech_final"]) == (True, False)


def test_finalize_is_answered_even_if_nothing_was_said() -> None:
    dialect = deepgram()
    assert dialect.receive({"type": "Finalize"}) == ['{"type":"flush"}']
    (told,) = dialect.say(Flushed(2.0))
    assert (told["is_final"], told["from_finalize"]) == (True, True)
    assert told["channel"]["alternatives"][0]["transcript"] == ""


def test_keep_alive_is_a_ping_and_close_stream_an_end() -> None:
    dialect = deepgram()
    assert dialect.receive({"type": "KeepAlive"}) == ['{"type":"ping"}']
    assert dialect.receive({"type": "CloseStream"}) == ['{"type":"end"}']
    assert dialect.receive(b"") == ['{"type":"end"}']
    (told,) = dialect.say(END)
    assert (told["type"], told["duration"], told["channels"]) == ("Metadata", 2.0, 1)
    assert told["created"] == "2025-11-30T10:53:20+00:00"
    assert dialect.protocol.close_code(1000) == 1000


def test_keyterms_may_change_in_the_middle() -> None:
    change, told = deepgram().receive({"type": "Configure", "keyterms": ["Zara"]})
    assert json.loads(change) == {"type": "config", "keywords": ["Zara"]}
    assert told == {"type": "ConfigureSuccess", "request_id": "sess_1", "keyterms": ["Zara"]}
    (failure,) = deepgram().receive({"type": "Configure", "keyterms": ["x"] * 51})
    assert failure["code"] == "CONFIGURE_KEYTERM_LIMIT_EXCEEDED"


@pytest.mark.parametrize("text", ["hello", '{"type":"Shout"}', "[]", "{}"])
def test_a_text_that_is_no_control_message_ends_the_call(text: str) -> None:
    with pytest.raises(ClientError):
        deepgram().receive(text)


def test_a_wrong_key_is_refused_before_the_connection_opens() -> None:
    error = Error(code="unauthorized", message="the API key is not known here", recoverable=False)
    answer = Deepgram.denial(deepgram().protocol, error, "req_1")  # pyright: ignore[reportArgumentType]
    assert answer.status == 401
    assert answer.headers["dg-request-id"] == "req_1"
    assert json.loads(answer.body)["err_msg"] == "the API key is not known here"


def test_channels_apart_are_told_with_their_index() -> None:
    dialect = Dialect(Deepgram, f"{USUAL}&channels=2&multichannel=true&vad_events=true")
    asked = dialect.protocol.asked()
    assert asked
    assert (asked.channels, asked.config.channels) == (2, 1)
    assert [dialect.say(replace(BEGIN, channel=n)) for n in (0, 1)] == [[], []]
    told = dialect.say(
        replace(SpeechStart(0.4), channel=1),
        replace(partial(0, "hello", "", 0.4, 1.0), channel=1),
        replace(final(0, "Good morning.", 0.1, 1.2), channel=0),
        replace(Flushed(2.0), channel=1),
    )
    assert [m.get("channel_index", m.get("channel")) for m in told] == [
        [1, 2],
        [1, 2],
        [0, 2],
        [1, 2],
    ]
    assert told[-1]["start"] == 0.0  # nothing of this channel was final
    assert dialect.say(replace(END, channel=1)) == []
    (metadata,) = dialect.say(replace(END, channel=0))
    assert (metadata["type"], metadata["channels"]) == ("Metadata", 2)


def test_each_channel_has_its_own_end_of_an_utterance() -> None:
    query = f"{USUAL}&channels=2&multichannel=true&utterance_end_ms=1000"
    dialect = Dialect(Deepgram, query)
    dialect.config()
    dialect.say(replace(final(0, "Good morning.", 0.1, 1.2), channel=0))
    assert dialect.say(replace(Ack(3.0, 3.0, 0.0), channel=1)) == []
    (end,) = dialect.say(replace(Ack(3.0, 3.0, 0.0), channel=0))
    assert (end["type"], end["channel"], end["last_word_end"]) == ("UtteranceEnd", [0, 2], 1.2)


def test_one_channel_apart_is_one_channel() -> None:
    asked = Dialect(Deepgram, f"{USUAL}&multichannel=true").protocol.asked()
    assert asked
    assert asked.channels == 1
