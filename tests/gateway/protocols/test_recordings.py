"""
The protocol of recordings as a mapping. # 004-04 004-12 004-13 004-14 004-15 004-36 C-19
"""

from typing import Any

import pytest
from support.dialects import Dialect, final, partial

from dalston.gateway.protocols.recordings import Recordings
from dalston.orchestrator.protocol.messages import Error, Flushed, Pong, SessionConfig

START, STOP = {"type": "start_recording"}, {"type": "stop_recording"}
SECOND = bytes(32_000)


def recordings(**config: Any) -> Dialect:
    dialect = Dialect(Recordings, "client_id=me")
    dialect.receive({**START, "config": config} if config else START)
    return dialect


def test_who_connects_is_greeted_and_may_wait() -> None:
    import json

    protocol = Dialect(Recordings, "client_id=me").protocol
    (greeting,) = map(json.loads, protocol.greeting())
    assert greeting["type"] == "connection"
    assert (greeting["status"], greeting["client_id"]) == ("connected", "me")
    assert greeting["protocol_version"] == "1.0"
    assert protocol.asked() is None


def test_without_a_name_a_client_gets_one() -> None:
    import json

    (greeting,) = map(json.loads, Dialect(Recordings).protocol.greeting())
    assert greeting["client_id"].startswith("client_")


def test_a_recording_begins_a_session() -> None:
    dialect = recordings(sample_rate=8000, language="de-DE")
    assert dialect.config() == SessionConfig(
        sample_rate=8000, language="de", word_timestamps=True, flushed=True
    )


def test_audio_outside_a_recording_is_dropped() -> None:
    dialect = Dialect(Recordings)
    assert dialect.receive(SECOND) == []
    dialect.receive(START)
    assert dialect.receive(SECOND) == [SECOND]
    assert dialect.receive(STOP) == ['{"type":"flush"}']
    assert dialect.receive(SECOND) == []


def test_a_recording_is_told_and_its_end_comes_after_its_last_words() -> None:
    dialect = recordings()
    dialect.receive(3 * SECOND)
    dialect.receive(STOP)
    shown, last, stopped = dialect.say(
        partial(0, "Hello", "", 0.3, 0.9), final(0, "Hello there.", 0.3, 1.3), Flushed(3.0)
    )
    assert (shown["type"], shown["text"], shown["is_final"]) == ("partial", "Hello", False)
    assert (last["type"], last["text"], last["is_final"]) == (
        "transcription",
        "Hello there.",
        True,
    )
    assert last["words"][0] == {"word": "Hello", "start": 0.3, "end": 0.8, "confidence": 0.9}
    assert (last["duration"], last["processing_time_ms"]) == (1.0, 80)
    assert stopped == {
        "type": "recording_stopped",
        "final_transcript": "Hello there.",
        "total_duration": 3.0,
        "total_segments": 1,
        "timestamp": "2025-11-30T10:53:20+00:00",
    }


def test_each_recording_has_its_own_times_and_its_own_text() -> None:
    dialect = recordings()
    dialect.receive(3 * SECOND)
    dialect.receive(STOP)
    dialect.say(final(0, "Hello.", 0.3, 1.3), Flushed(3.0))
    (started,) = dialect.receive(START)
    assert started["type"] == "recording_started"
    dialect.receive(2 * SECOND)
    dialect.receive(STOP)
    last, stopped = dialect.say(final(1, "Bye.", 3.5, 4.0), Flushed(5.0))
    assert last["words"][0]["start"] == 0.5
    assert (stopped["final_transcript"], stopped["total_duration"]) == ("Bye.", 2.0)


def test_a_language_may_change_between_recordings_and_a_format_may_not() -> None:
    dialect = recordings(language="en")
    dialect.receive(STOP)
    change, _ = dialect.receive({**START, "config": {"language": "de"}})
    assert change == '{"type":"config","language":"de"}'
    dialect.receive(STOP)
    (told,) = dialect.receive({**START, "config": {"sample_rate": 8000}})
    assert "cannot change" in told["error"]


def test_thresholds_may_be_set_before_and_after() -> None:  # 004-20
    dialect = Dialect(Recordings)
    asked = {"type": "configure", "vad_threshold": 0.6, "silence_duration": 0.8}
    (told,) = dialect.receive(asked)
    assert told == {"type": "configured", "config": {"vad_threshold": 0.6, "silence_duration": 0.8}}
    dialect.receive(START)
    config = dialect.config()
    assert (config.vad_threshold, config.min_silence_duration_ms) == (0.6, 800)
    change, _ = dialect.receive({"type": "configure", "silence_duration": 0.4})
    assert change == '{"type":"config","min_silence_duration_ms":400}'


def test_a_threshold_of_loudness_is_refused_with_a_hint() -> None:  # C-20
    (told,) = recordings().receive({"type": "configure", "vad_threshold": 0.01})
    assert told["type"] == "error"
    assert "probability of speech, usually 0.5" in told["error"]


def test_a_ping_is_answered_before_and_in_a_recording() -> None:
    (told,) = Dialect(Recordings).receive({"type": "ping"})
    assert told == {"type": "pong"}
    dialect = recordings()
    assert dialect.receive({"type": "ping"}) == ['{"type":"ping"}']
    assert dialect.say(Pong()) == [{"type": "pong"}]


@pytest.mark.parametrize(
    "frame",
    ["hello", {"type": "shout"}, STOP, {**START, "config": {"encoding": "opus"}}],
)
def test_what_makes_no_sense_is_an_error_and_the_connection_goes_on(frame: Any) -> None:
    dialect = Dialect(Recordings)
    (told,) = dialect.receive(frame)
    assert told["type"] == "error"
    assert dialect.receive(START)[0]["type"] == "recording_started"


def test_a_recording_cannot_begin_twice() -> None:
    (told,) = recordings().receive(START)
    assert told["type"] == "error"


def test_an_error_is_a_sentence() -> None:
    (told,) = recordings().say(Error(code="no_capacity", message="busy", recoverable=True))
    assert (told["type"], told["error"]) == ("error", "busy")
