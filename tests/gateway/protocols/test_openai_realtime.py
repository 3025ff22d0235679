"""
OpenAI's Realtime protocol for transcription as a mapping.
"""

import base64
import json
from typing import Any

import pytest
from support.dialects import Dialect, final, partial

from dalston.gateway.protocols.openai_realtime import MOST_EARLY, OpenAIRealtime
from dalston.orchestrator.protocol.messages import (
    Error,
    Flushed,
    SessionConfig,
    SpeechEnd,
    SpeechStart,
    Warn,
)

PCM = {"format": {"type": "audio/pcm", "rate": 24000}}


def realtime(**given: Any) -> Dialect:
    """Updated with this as its audio's input."""
    dialect = Dialect(OpenAIRealtime, "intent=transcription&model=gpt-4o-transcribe")
    dialect.receive(update(**given))
    return dialect


def update(**given: Any) -> dict[str, Any]:
    session = {"type": "transcription", "audio": {"input": {**PCM, **given}}}
    return {"type": "session.update", "event_id": "mine", "session": session}


def append(audio: bytes) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()}


COMMIT, CLEAR = {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.clear"}


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [
        event["type"].removeprefix("conversation.item.input_audio_transcription.") for event in told
    ]


def test_who_connects_is_greeted_with_the_session_as_it_would_be() -> None:
    dialect = Dialect(OpenAIRealtime, "intent=transcription")
    (greeting,) = map(json.loads, dialect.protocol.greeting())
    assert greeting["type"] == "session.created"
    session = greeting["session"]
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}


def test_a_client_of_the_beta_is_told_in_its_shape() -> None:
    dialect = Dialect(OpenAIRealtime, "intent=transcription", openai_beta="realtime=v1")
    (greeting,) = map(json.loads, dialect.protocol.greeting())
    assert greeting["type"] == "transcription_session.created"
    (told,) = dialect.receive(
        {
            "type": "transcription_session.update",
            "session": {
                "input_audio_format": "g711_ulaw",
                "input_audio_transcription": {"model": "whisper-1", "language": "de"},
                "turn_detection": None,
            },
        }
    )
    assert told["type"] == "transcription_session.updated"
    assert told["session"]["input_audio_format"] == "g711_ulaw"
    config = dialect.config()
    assert (config.encoding, config.sample_rate) == ("mulaw", 8000)
    assert (config.language, config.endpointing) == ("de", "manual")


def test_the_first_update_is_the_session() -> None:
    dialect = realtime(
        transcription={"model": "accurate", "language": "en", "prompt": "Nietzsche"},
        turn_detection={"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 350},
    )
    assert dialect.config() == SessionConfig(
        sample_rate=24000,
        model="accurate",
        language="en",
        prompt="Nietzsche",
        vad_threshold=0.4,
        min_silence_duration_ms=350,
        flushed=True,
    )


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"turn_detection": None}, "endpointing", "manual"),
        ({"turn_detection": {"type": "semantic_vad"}}, "endpointing", "smart"),
        (
            {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}},
            "max_silence_duration_ms",
            2000,
        ),
        ({"transcription": {"languages": ["en", "de"]}}, "languages", ("en", "de")),
        ({"transcription": {"keywords": ["Zara"]}}, "keywords", ("Zara",)),
        ({"format": {"type": "audio/pcma"}}, "encoding", "alaw"),
    ],
)
def test_each_setting_has_its_effect(given: dict[str, Any], field: str, value: object) -> None:
    assert getattr(realtime(**given).config(), field) == value


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"format": {"type": "audio/opus"}}, "session.audio.input.format.type"),
        ({"format": {"type": "audio/pcm", "rate": 16000}}, "session.audio.input.format.rate"),
        ({"turn_detection": {"type": "magic"}}, "session.audio.input.turn_detection.type"),
        ({"transcription": {"language": 7}}, "session.audio.input.transcription.language"),
        ({"transcription": {"language": "tlh"}}, "session"),
    ],
)
def test_what_cannot_be_done_is_an_error_that_names_the_event(
    given: dict[str, Any], param: str
) -> None:
    dialect = Dialect(OpenAIRealtime)
    (told,) = dialect.receive(update(**given))
    assert told["type"] == "error"
    assert (told["error"]["param"], told["error"]["event_id"]) == (param, "mine")
    assert dialect.protocol.asked() is None


def test_audio_that_comes_before_the_settings_does_not_decide_them() -> None:
    dialect = Dialect(OpenAIRealtime, "intent=transcription")
    assert dialect.receive(append(bytes(4800))) == [bytes(4800)]
    assert dialect.protocol.asked() is None
    dialect.receive(update(turn_detection=None))
    assert dialect.config().endpointing == "manual"


def test_who_says_no_settings_gets_the_usual_session() -> None:
    dialect = Dialect(OpenAIRealtime, "intent=transcription")
    dialect.receive(append(bytes(MOST_EARLY)))
    assert dialect.config() == SessionConfig(sample_rate=24000, flushed=True)


def test_what_an_update_does_not_name_stays() -> None:
    dialect = realtime(transcription={"language": "en", "prompt": "Nietzsche"})
    change, told = dialect.receive(update(transcription={"prompt": "Zarathustra"}))
    assert json.loads(change) == {"type": "config", "prompt": "Zarathustra"}
    said = told["session"]["audio"]["input"]["transcription"]
    assert (said["language"], said["prompt"]) == ("en", "Zarathustra")


def test_who_commits_may_change_until_audio_came() -> None:
    dialect = realtime()
    change, _ = dialect.receive(update(turn_detection=None))
    assert json.loads(change) == {"type": "config", "endpointing": "manual"}
    dialect.receive(append(bytes(4800)))
    (told,) = dialect.receive(update(turn_detection={"type": "server_vad"}))
    assert told["error"]["param"] == "session.audio.input.turn_detection"
    assert "cannot change" in told["error"]["message"]


def test_an_utterance_is_an_item_from_speech_to_completion() -> None:
    told = realtime().say(
        SpeechStart(0.4),
        partial(0, "Hello the", "Hello", 0.3, 0.9),
        partial(0, "Hello there", "Hello", 0.3, 1.1),
        SpeechEnd(1.3),
        final(0, "Hello there.", 0.3, 1.3),
    )
    assert kinds(told) == [
        "input_audio_buffer.speech_started",
        "delta",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "delta",
        "completed",
    ]
    assert len({event["event_id"] for event in told}) == len(told)
    items = {event.get("item_id") or event["item"]["id"] for event in told}
    assert len(items) == 1
    deltas = [event["delta"] for event in told if "delta" in event]
    assert deltas == ["Hello", " there."]
    done = told[-1]
    assert done["transcript"] == "Hello there."
    assert done["usage"] == {"type": "duration", "seconds": 1.0}
    assert done["languages"] == [{"code": "en"}]
    assert (told[0]["audio_start_ms"], told[2]["audio_end_ms"]) == (400, 1300)


def test_nothing_that_was_told_is_taken_back() -> None:
    told = realtime().say(
        SpeechStart(0.4),
        partial(0, "Hello bear", "Hello bear", 0.3, 1.0),
        SpeechEnd(1.3),
        final(0, "Hello there.", 0.3, 1.3),
    )
    assert [event["delta"] for event in told if "delta" in event] == ["Hello bear"]
    assert told[-1]["transcript"] == "Hello there."


def test_an_utterance_of_which_nothing_was_understood_is_completed_empty() -> None:
    told = realtime().say(
        SpeechStart(0.4),
        SpeechEnd(1.3),
        SpeechStart(2.0),
        SpeechEnd(3.0),
        final(1, "Hello.", 2.0, 3.0),
    )
    done = [event["transcript"] for event in told if event["type"].endswith("completed")]
    assert done == ["", "Hello."]
    committed = [event for event in told if event["type"].endswith("committed")]
    assert committed[0]["previous_item_id"] is None
    assert committed[1]["previous_item_id"] == committed[0]["item_id"]


def test_a_commit_is_an_item_of_all_that_was_said_since_the_last() -> None:
    dialect = realtime(turn_detection=None)
    dialect.receive(append(bytes(4800)))
    early = dialect.say(SpeechStart(0.4), partial(0, "Hello there", "Hello", 0.3, 0.9))
    assert kinds(early) == ["delta"]
    committed, item, flush = dialect.receive(COMMIT)
    assert flush == '{"type":"flush"}'
    assert committed["item_id"] == item["item"]["id"] == early[0]["item_id"]
    dialect.receive(append(bytes(4800)))
    told = dialect.say(
        final(0, "Hello there.", 0.3, 1.3),
        final(1, "My name is Ida.", 1.5, 2.5),
        Flushed(2.5),
        partial(2, "Bye now", "Bye", 2.6, 3.0),
    )
    assert kinds(told) == ["delta", "delta", "completed", "delta"]
    assert told[2]["transcript"] == "Hello there. My name is Ida."
    texts = [
        e["delta"]
        for e in [*early, *told]
        if e.get("item_id") == committed["item_id"] and "delta" in e
    ]
    assert "".join(texts) == told[2]["transcript"]
    assert told[2]["usage"]["seconds"] == 2.5
    second, _, _ = dialect.receive(COMMIT)
    assert second["previous_item_id"] == committed["item_id"]
    assert second["item_id"] == told[3]["item_id"]
    (done,) = dialect.say(Flushed(4.0))
    assert (done["transcript"], done["usage"]["seconds"]) == ("", 1.5)


def test_nothing_cannot_be_committed_twice() -> None:
    dialect = realtime(turn_detection=None)
    dialect.receive(append(bytes(4800)))
    dialect.receive(COMMIT)
    (told,) = dialect.receive({**COMMIT, "event_id": "mine"})
    assert told["error"]["code"] == "input_audio_buffer_commit_empty"
    assert told["error"]["event_id"] == "mine"


def test_what_is_cleared_cannot_be_committed() -> None:
    dialect = realtime(turn_detection=None)
    dialect.receive(append(bytes(4800)))
    clear, told = dialect.receive(CLEAR)
    assert (clear, told["type"]) == ('{"type":"clear"}', "input_audio_buffer.cleared")
    (told,) = dialect.receive(COMMIT)
    assert told["type"] == "error"


def test_logprobs_are_told_to_who_asks() -> None:
    dialect = Dialect(OpenAIRealtime)
    asked = update()
    asked["session"]["include"] = ["item.input_audio_transcription.logprobs"]
    dialect.receive(asked)
    assert dialect.config().word_timestamps
    told = dialect.say(SpeechStart(0.4), SpeechEnd(1.3), final(0, "Hello there.", 0.3, 1.3))
    assert [one["token"] for one in told[-1]["logprobs"]] == ["Hello", "there."]


def test_an_error_is_told_only_where_something_failed() -> None:
    assert realtime().say(Warn(code="processing_lag", message="late")) == []
    (told,) = realtime().say(Error(code="no_capacity", message="busy", recoverable=True))
    assert told["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    "frame",
    [
        "hello",
        "[]",
        {"type": "response.create"},
        {"type": "session.update"},
        {"type": "session.update", "session": {"type": "realtime"}},
        {"type": "input_audio_buffer.append", "audio": "***"},
    ],
)
def test_an_event_that_makes_no_sense_is_an_error_and_the_session_goes_on(frame: Any) -> None:
    (told,) = realtime().receive(frame)
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
