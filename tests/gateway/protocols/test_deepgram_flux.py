"""
Deepgram's protocol for voice agents as a mapping.
"""

import json

import pytest
from support.dialects import Dialect, final, partial

from dalston.gateway.protocols.deepgram_flux import Flux
from dalston.orchestrator.protocol.messages import (
    Eager,
    SessionBegin,
    SessionConfig,
    SpeechEnd,
    SpeechStart,
    Withdrawn,
)

BEGIN = SessionBegin(
    session_id="sess_1", protocol_version="1.0", config=SessionConfig(), warnings=[]
)


def flux(query: str = "") -> Dialect:
    dialect = Dialect(Flux, f"model=flux-general-en&encoding=linear16&sample_rate=16000&{query}")
    dialect.config()
    return dialect


def test_turns_end_by_how_they_sound() -> None:
    config = flux("eot_threshold=0.8&eot_timeout_ms=9000&keyterm=Zara").config()
    assert config == SessionConfig(
        language="en",
        endpointing="smart",
        turn_threshold=0.8,
        max_silence_duration_ms=5000,
        keywords=("Zara",),
        word_timestamps=True,
    )
    assert flux("eager_eot_threshold=0.4").config().eager


def test_a_turn_starts_is_updated_ends_early_resumes_and_ends() -> None:
    told = flux("eager_eot_threshold=0.4").say(
        BEGIN,
        SpeechStart(0.4),
        partial(0, "Hello", "", 0.3, 0.9),
        Eager(segment_id="seg_0000", text="Hello.", start=0.3, end=1.0, language="en"),
        Withdrawn("seg_0000"),
        SpeechEnd(2.0),
        final(0, "Hello there.", 0.3, 1.9),
        SpeechStart(3.0),
    )
    assert [what.get("event", what["type"]) for what in told] == [
        "Connected",
        "StartOfTurn",
        "Update",
        "EagerEndOfTurn",
        "TurnResumed",
        "EndOfTurn",
        "StartOfTurn",
    ]
    assert [what["sequence_id"] for what in told] == list(range(7))
    assert [what["turn_index"] for what in told[1:]] == [0, 0, 0, 0, 0, 1]
    end = told[5]
    assert (end["transcript"], end["trigger"]) == ("Hello there.", "model")
    assert [word["word"] for word in end["words"]] == ["Hello", "there."]


def test_a_client_may_end_a_turn() -> None:
    dialect = flux()
    dialect.say(BEGIN, SpeechStart(0.4))
    assert dialect.receive({"type": "ForceEndTurn"}) == ['{"type":"flush"}']
    (told,) = dialect.say(final(0, "Hello", 0.3, 1.0))
    assert (told["event"], told["trigger"]) == ("EndOfTurn", "manual")


def test_keyterms_may_change_and_thresholds_may_not() -> None:
    dialect = flux()
    change, told = dialect.receive({"type": "Configure", "keyterms": ["Zara"]})
    assert json.loads(change) == {"type": "config", "keywords": ["Zara"]}
    assert (told["type"], told["keyterms"]) == ("ConfigureSuccess", ["Zara"])
    (told,) = dialect.receive({"type": "Configure", "thresholds": {"eot_threshold": 0.6}})
    assert told["type"] == "ConfigureFailure"


@pytest.mark.parametrize("frame", ["hello", {"type": "KeepAlive?"}])
def test_a_text_that_is_no_control_message_ends_the_call(frame: object) -> None:
    with pytest.raises(Exception, match="control message"):
        flux().receive(frame)  # pyright: ignore[reportArgumentType]
