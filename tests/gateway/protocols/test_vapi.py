"""
Vapi's custom transcriber as a mapping: the messages of its documentation, in their order.
"""

import pytest
from msgspec.structs import replace
from support.dialects import Dialect, final, partial

from dalston.gateway.protocols.protocol import ClientError
from dalston.gateway.protocols.vapi import Vapi
from dalston.orchestrator.protocol.messages import Error, SessionConfig

START = {
    "type": "start",
    "encoding": "linear16",
    "container": "raw",
    "sampleRate": 16000,
    "channels": 2,
}


def started(query: str = "", **other: object) -> Dialect:
    vapi = Dialect(Vapi, query)
    assert vapi.protocol.asked() is None
    assert vapi.receive(START | other) == []
    return vapi


def test_the_start_says_what_is_sent_and_the_query_what_is_wanted() -> None:
    vapi = started("language=de-DE&model=accurate&keywords=Zara,Helstone")
    assert vapi.config() == SessionConfig(
        language="de",
        model="accurate",
        keywords=("Zara", "Helstone"),
        interim_results=False,
        enable_vad=False,
    )
    asked = vapi.protocol.asked()
    assert asked
    assert asked.channels == 2
    assert vapi.receive(b"\1\2\3\4") == [b"\1\2\3\4"]


def test_finals_say_who_speaks() -> None:
    vapi = started()
    told = vapi.say(
        replace(partial(0, "how can", "", 0.1, 0.5), channel=1),
        replace(final(0, "How can I help?", 0.1, 1.5), channel=1),
        replace(final(0, "Turn on the light.", 2.1, 3.5), channel=0),
    )
    assert told == [
        {
            "type": "transcriber-response",
            "transcription": "How can I help?",
            "channel": "assistant",
        },
        {
            "type": "transcriber-response",
            "transcription": "Turn on the light.",
            "channel": "customer",
        },
    ]


def test_one_channel_is_the_customers() -> None:
    vapi = started(channels=1, sampleRate=8000)
    assert vapi.config().sample_rate == 8000
    (told,) = vapi.say(final(0, "Hello.", 0.1, 1.5))
    assert told["channel"] == "customer"


def test_other_messages_are_not_ours() -> None:
    assert started().receive({"type": "model-output", "message": "Hi"}) == []


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (START | {"encoding": "mulaw"}, "mulaw in raw"),
        (START | {"container": "wav"}, "linear16 in wav"),
        (START | {"channels": 3}, "channels"),
        (START | {"sampleRate": "16k"}, "not a message"),
        ({"event": "start"}, "not a message"),
    ],
)
def test_what_cannot_be_done_is_refused(message: dict[str, object], why: str) -> None:
    with pytest.raises(ClientError, match=why):
        Dialect(Vapi).receive(message)


def test_audio_before_the_start_and_a_second_start_are_refused() -> None:
    with pytest.raises(ClientError, match="before the start"):
        Dialect(Vapi).receive(b"\1\2")
    with pytest.raises(ClientError, match="twice"):
        started().receive(START)


def test_errors_are_told() -> None:
    error = Error(code="no_capacity", message="full", recoverable=True, retry_after=5)
    assert started().say(error) == [{"type": "error", "error": "full"}]
