"""
Twilio's Media Streams as a mapping: the messages of its documentation, in their order.
"""

import base64
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dialects import Dialect, final

from dalston.gateway.protocols.protocol import ClientError
from dalston.gateway.protocols.twilio import GAP, LONGEST_GAP, PATIENCE, InStep, Twilio
from dalston.orchestrator.protocol.messages import End, SessionConfig, serialize

CALL = "CAcdefghijklmnopqrstuvwxyz0123456"
CONNECTED = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
STOP = {
    "event": "stop",
    "sequenceNumber": "5",
    "streamSid": "MZ1",
    "stop": {"accountSid": "AC1", "callSid": CALL},
}
SILENT = b"\xff"


def start(*tracks: str, **parameters: str) -> dict[str, Any]:
    return {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": "AC1",
            "streamSid": "MZ1",
            "callSid": CALL,
            "tracks": list(tracks),
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": parameters,
        },
        "streamSid": "MZ1",
    }


def media(sound: bytes, track: str = "inbound", timestamp: int = 0) -> dict[str, Any]:
    payload = base64.b64encode(sound).decode()
    return {
        "event": "media",
        "sequenceNumber": "3",
        "media": {"track": track, "chunk": "1", "timestamp": str(timestamp), "payload": payload},
        "streamSid": "MZ1",
    }


def called(*tracks: str, **parameters: str) -> Dialect:
    call = Dialect(Twilio)
    assert call.receive(CONNECTED) == []
    assert call.protocol.asked() is None
    assert call.receive(start(*tracks, **parameters)) == []
    return call


def test_a_call_from_its_first_message_to_the_last() -> None:
    call = called("inbound", language="de-DE", model="accurate", api_key="dk_1")
    assert call.config() == SessionConfig(
        encoding="mulaw", sample_rate=8000, language="de", model="accurate"
    )
    asked = call.protocol.asked()
    assert asked
    assert (asked.channels, asked.key, call.protocol.topic) == (1, "dk_1", CALL)
    assert call.receive(media(b"\1" * 160, timestamp=5)) == [b"\1" * 160]
    assert call.receive({"event": "mark", "streamSid": "MZ1", "mark": {"name": "x"}}) == []
    assert call.receive({"event": "dtmf", "dtmf": {"track": "inbound", "digit": "1"}}) == []
    assert call.receive(STOP) == [serialize(End())]
    assert call.say(final(0, "Hallo.", 0.1, 1.0))[0]["text"] == "Hallo."


def test_both_tracks_are_one_audio_of_two_channels() -> None:
    call = called("inbound", "outbound")
    asked = call.protocol.asked()
    assert asked
    assert (asked.channels, asked.config.channels) == (2, 1)
    assert call.receive(media(b"\1\1\1\1", "inbound", 0)) == [b""]
    assert call.receive(media(b"\2\2", "outbound", 1)) == [b"\1\2\1\2"]
    assert call.receive(media(b"\2\2\2", "outbound", 2)) == [b"\1\2\1\2"]
    assert call.receive(STOP) == [SILENT + b"\2", serialize(End())]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (media(b"\1"), "before the start"),
        (start("inbound", "third"), "tracks may be"),
        (start(), "tracks may be"),
        (start("inbound", language="tlh"), "language"),
        (start("inbound", encoding="pcm_s16le"), "encoding is what Twilio sends"),
        ({"event": "start", "start": {}}, "not a message"),
        ({"type": "start"}, "not a message"),
    ],
)
def test_what_makes_no_sense_is_refused(message: dict[str, Any], why: str) -> None:
    with pytest.raises(ClientError, match=why):
        Dialect(Twilio).receive(message)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (media(b"\1", "outbound"), "does not name"),
        (start("inbound"), "came twice"),
        ({"event": "media", "media": {"payload": "no Base64!"}}, "Base64"),
    ],
)
def test_so_is_what_makes_none_after_the_start(message: dict[str, Any], why: str) -> None:
    with pytest.raises(ClientError, match=why):
        called("inbound").receive(message)


# In step.


@given(
    inbound=st.binary(max_size=300),
    outbound=st.binary(max_size=300),
    cuts=st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=12),
)
def test_each_track_is_heard_whole_however_they_alternate(
    inbound: bytes, outbound: bytes, cuts: list[tuple[bool, int]]
) -> None:
    steps, turns = InStep(["inbound", "outbound"]), b""
    for track, sound in (("inbound", inbound), ("outbound", outbound)):
        places = sorted(
            {0, len(sound), *(at for first, at in cuts if first is (track == "inbound"))}
        )
        for first, last in pairwise(min(place, len(sound)) for place in places):
            turns += steps.add(track, None, sound[first:last])
    turns += steps.rest()
    longest = max(len(inbound), len(outbound))
    assert turns[0::2] == inbound.ljust(longest, SILENT)
    assert turns[1::2] == outbound.ljust(longest, SILENT)


def test_a_track_that_says_nothing_is_silent_and_holds_nobody_up() -> None:
    steps, told = InStep(["inbound", "outbound"]), 0
    for at in range(0, 16_000, 160):
        told += len(steps.add("inbound", at, b"\1" * 160))
    assert told == 2 * (16_000 - PATIENCE)
    # Its next words stand where they were said.
    turns = steps.add("outbound", 16_000 - 160, b"\2" * 160)
    assert turns == (b"\1" + SILENT) * (PATIENCE - 160) + b"\1\2" * 160


def test_what_comes_late_is_left_out_as_far_as_it_was_taken_for_silent() -> None:
    steps = InStep(["inbound", "outbound"])
    steps.add("inbound", 0, b"\1" * (2 * PATIENCE))
    late = b"\2" * (PATIENCE - GAP - 1) + b"\3" * (GAP + 1 + PATIENCE)
    turns = steps.add("outbound", 0, late)
    assert turns == (b"\1\3") * PATIENCE


def test_times_that_are_not_regular_change_nothing() -> None:
    steps = InStep(["inbound"])
    for number, at in enumerate((40, 180, 330, 505)):
        assert steps.add("inbound", at, bytes([number]) * 160) == bytes([number]) * 160


def test_a_gap_is_as_long_as_it_was_and_no_longer_than_can_be() -> None:
    steps = InStep(["inbound"])
    steps.add("inbound", 0, b"\1" * 160)
    assert steps.add("inbound", 160 + 2 * GAP, b"\1") == SILENT * (2 * GAP) + b"\1"
    for at in (10 * LONGEST_GAP, 10 * LONGEST_GAP + 1, 0, 1):
        assert steps.add("inbound", at, b"\1") == b"\1"
