"""
What a client holds to send it again, and what it was told already: no socket, no clock.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalston.client.resume import AHEAD_S, HELD_S, Gone, Heard, Sent

CONFIG = {"encoding": "pcm_s16le", "sample_rate": 8_000, "channels": 1}
SECOND = 16_000  # bytes
FLUSH, CONFIGURE, PING = '{"type": "flush"}', '{"type": "config"}', '{"type": "ping"}'


def sent(*frames: bytes | str, **config: Any) -> Sent:
    """All of it is with the server."""
    said = Sent()
    said.begin(CONFIG | config)
    for frame in frames:
        said.hold(frame)
        assert said.take() == frame
    return said


def taken(said: Sent) -> list[bytes | str]:
    return list(iter(said.take, None))


def ack(processed: float, finalised: float) -> dict[str, Any]:
    return {"type": "ack", "received": processed, "processed": processed, "finalised": finalised}


def seconds(count: int) -> list[bytes]:
    return [bytes([number]) * SECOND for number in range(count)]


# What is sent again.


def test_from_the_offset_on_everything_goes_out_again() -> None:
    said = sent(*seconds(2), FLUSH, b"\7" * SECOND)
    said.go_back(1500)
    assert taken(said) == [b"\1" * (SECOND // 2), FLUSH, b"\7" * SECOND]


def test_a_message_at_the_offset_goes_out_again_and_one_before_it_does_not() -> None:
    said = sent(b"\0" * SECOND, FLUSH, b"\1" * SECOND, CONFIGURE)
    said.go_back(1000)
    assert taken(said) == [FLUSH, b"\1" * SECOND, CONFIGURE]
    said.go_back(1000.0625)
    assert taken(said) == [b"\1" * (SECOND - 2), CONFIGURE]


def test_an_offset_between_two_frames_is_rounded_up() -> None:
    said = sent(bytes(range(200)) * 80)
    said.go_back(900.03)  # 7200.24 samples
    (again,) = taken(said)
    assert len(again) == SECOND - 2 * 7201


def test_other_formats_have_other_frames() -> None:
    said = sent(bytes(48_000), encoding="pcm_f32le", sample_rate=24_000, channels=2)
    said.go_back(100)
    assert [len(frame) for frame in taken(said)] == [48_000 - 2400 * 8]


def test_what_is_finalised_is_forgotten() -> None:
    said = sent(*seconds(3), FLUSH, b"\3" * SECOND)
    said.acknowledged(ack(2.5, 2.0))
    with pytest.raises(Gone, match=r"from 1\.0 s on"):
        said.go_back(1000)
    said.go_back(2000)
    assert taken(said) == [b"\2" * SECOND, FLUSH, b"\3" * SECOND]


def test_what_is_held_while_the_connection_is_away_comes_behind_what_is_repeated() -> None:
    said = sent(b"\0" * SECOND)
    said.hold(b"\1" * SECOND)
    said.hold(FLUSH)
    said.go_back(500)
    said.hold(b"\2" * SECOND)
    expected = [b"\0" * (SECOND // 2), b"\1" * SECOND, FLUSH, b"\2" * SECOND]
    assert taken(said) == expected


def test_without_acks_the_oldest_audio_goes() -> None:
    said = sent(*[bytes(SECOND)] * (int(HELD_S) + 10))
    assert not said.full
    with pytest.raises(Gone):
        said.go_back(9000)
    said.go_back(10_000)
    assert len(taken(said)) == HELD_S


def test_the_application_waits_when_it_is_far_ahead() -> None:
    said = sent(*[bytes(SECOND)] * 10)
    said.acknowledged(ack(5.0, 5.0))
    for _ in range(int(AHEAD_S) - 5):
        assert not said.full
        said.hold(bytes(SECOND))
    assert not said.full
    said.hold(bytes(2))
    assert said.full
    said.acknowledged(ack(6.0, 5.0))
    assert not said.full


def test_the_application_waits_when_the_connection_is_away_for_long() -> None:
    said = sent(bytes(SECOND))
    for _ in range(int(AHEAD_S)):
        said.hold(bytes(SECOND))
    assert not said.full
    said.hold(bytes(2))
    assert said.full


def test_without_keeping_nothing_can_go_out_again() -> None:
    said = Sent(keep=False)
    said.begin(CONFIG)
    said.hold(bytes(10))
    assert said.take() == bytes(10)
    with pytest.raises(Gone):
        said.go_back(0)


def test_a_session_the_application_went_on_with_has_its_first_byte_at_the_offset() -> None:
    said = Sent()
    said.begin(CONFIG, offset_ms=1000)
    said.hold(b"\1" * SECOND)
    said.take()
    said.go_back(1500)
    assert taken(said) == [b"\1" * (SECOND // 2)]
    with pytest.raises(Gone):
        said.go_back(999)


def test_a_config_that_is_said_again_is_not_answered_again() -> None:
    said = sent(CONFIGURE, bytes(SECOND), CONFIGURE)
    assert said.answered()
    said.go_back(0)
    taken(said)
    assert not said.answered()  # the first, which was
    assert said.answered()  # the second, which was not
    said.go_back(0)
    assert [said.answered(), said.answered()] == [False, False]


def test_a_ping_without_a_pong_goes_out_again() -> None:
    said = sent(PING, bytes(10), PING)
    said.ponged()
    said.go_back(0)
    assert taken(said) == [PING, bytes(10)]


Frames = st.lists(
    st.one_of(st.integers(1, 3 * SECOND), st.sampled_from([FLUSH, CONFIGURE])), max_size=30
)


@given(Frames, st.data())
def test_however_often_it_breaks_the_server_gets_every_byte_and_message_in_its_place(
    frames: list[int | str], data: st.DataObject
) -> None:
    """The server forgets all behind an offset that no ack has passed, at any time."""
    said, at = Sent(), 0
    said.begin(CONFIG)
    expected = list[tuple[int, str]]()
    audio = bytes(number % 251 for number in range(sum(f for f in frames if isinstance(f, int))))
    got, told = b"", list[tuple[int, str]]()
    needed = 0

    def deliver(most: int) -> None:
        nonlocal got
        for _ in range(most):
            match said.take():
                case bytes() as piece:
                    got += piece
                case str() as message:
                    told.append((len(got), message))
                case None:
                    return

    for frame in frames:
        if isinstance(frame, int):
            said.hold(audio[at : at + frame])
            at += frame
        else:
            expected.append((at, frame))
            said.hold(frame)
        deliver(data.draw(st.integers(0, 3)))
        match data.draw(st.sampled_from(["go on", "ack", "break"])):
            case "ack":
                needed = data.draw(st.integers(needed // 2, len(got) // 2)) * 2
                said.acknowledged(ack(len(got) / SECOND, needed / SECOND))
            case "break":
                offset = data.draw(st.integers(needed // 2, len(got) // 2)) * 2
                said.go_back(offset / SECOND * 1000)
                got = got[:offset]
                told[:] = [(place, message) for place, message in told if place < offset]
            case _:
                pass
    deliver(1000)
    assert got == audio
    assert told == expected


# What is told.


def start(at: float) -> dict[str, Any]:
    return {"type": "vad.speech_start", "timestamp": at}


def end(at: float) -> dict[str, Any]:
    return {"type": "vad.speech_end", "timestamp": at}


def partial(segment: int, until: float, text: str, stable: int = 0) -> dict[str, Any]:
    told = {"type": "transcript.partial", "segment_id": f"seg_{segment:04}", "start": 0.0}
    return told | {"end": until, "text": text, "stable_chars": stable}


def final(segment: int, until: float) -> dict[str, Any]:
    told = {"type": "transcript.final", "segment_id": f"seg_{segment:04}", "start": 0.0}
    return told | {"end": until, "text": "one"}


ENDED = {"type": "session.end", "total_duration": 20.0}


def heard(*events: dict[str, Any]) -> Heard:
    ears = Heard()
    for event in events:
        assert ears.hear(event) == [event]
    return ears


def told(ears: Heard, *events: dict[str, Any]) -> list[dict[str, Any]]:
    return [news for event in events for news in ears.hear(event)]


def test_speech_that_was_told_is_not_told_again() -> None:
    ears = heard(start(1.0), end(2.0), final(0, 2.0), start(3.0), partial(1, 3.5, "a b", 1))
    ears.resumed(1900)
    again = [start(3.0), partial(1, 3.5, "a"), partial(1, 4.0, "a b", 0), end(4.5), final(1, 4.5)]
    news = [partial(1, 4.0, "a b", 1), end(4.5), final(1, 4.5)]
    assert told(ears, *again) == news


def test_an_end_that_was_told_is_not_told_again_and_its_partials_neither() -> None:
    ears = heard(start(1.0), partial(0, 1.5, "a"), end(2.0))
    ears.resumed(500)
    again = [start(1.0), partial(0, 1.8, "a b"), end(2.0), final(0, 2.0), start(2.8)]
    assert told(ears, *again) == [final(0, 2.0), start(2.8)]


def test_a_final_is_told_once() -> None:
    ears = heard(start(1.0), end(2.0), final(0, 2.0))
    assert ears.last_segment == "seg_0000"
    ears.resumed(500)
    assert told(ears, final(0, 2.0), partial(0, 2.5, "a"), final(1, 4.0)) == [final(1, 4.0)]


def test_speech_whose_end_was_missed_ends_before_its_final() -> None:
    ears = heard(start(1.0), partial(0, 1.5, "a"))
    ears.resumed(2200)
    assert told(ears, final(0, 2.0), start(3.0)) == [end(2.0), final(0, 2.0), start(3.0)]


def test_speech_that_came_to_nothing_meanwhile_ends_where_the_server_goes_on() -> None:
    ears = heard(start(1.0))
    ears.resumed(2200)
    assert told(ears, start(3.0)) == [end(2.2), start(3.0)]
    ears.resumed(4000)
    assert told(ears, ENDED) == [end(4.0), ENDED]


def test_an_utterance_that_was_missed_whole_has_its_final_alone() -> None:
    """Even if the server goes on before it: its speech would come behind its final."""
    ears = heard(start(1.0), end(2.0), final(0, 2.0))
    ears.resumed(1900)
    again = [final(1, 4.0), start(3.0), partial(1, 3.5, "a"), end(4.0), start(5.0)]
    assert told(ears, *again) == [final(1, 4.0), start(5.0)]


def test_both_sides_of_a_cut_are_told() -> None:
    ears = heard(start(1.0))
    ears.resumed(500)
    again = [start(1.0), end(30.0), final(0, 30.0), start(30.0)]
    assert told(ears, *again) == again[1:]


def eager(segment: int) -> dict[str, Any]:
    told = {"type": "transcript.eager", "segment_id": f"seg_{segment:04}", "text": "one"}
    return told | {"start": 0.0, "end": 2.0, "language": "en"}


def withdrawn(segment: int) -> dict[str, Any]:
    return {"type": "transcript.withdrawn", "segment_id": f"seg_{segment:04}"}


def test_an_eager_final_does_not_outlive_its_connection() -> None:
    ears = heard(start(1.0), eager(0))
    assert ears.resumed(500) == [withdrawn(0)]
    assert told(ears, withdrawn(0), eager(0), end(2.0)) == [eager(0), end(2.0)]
    assert told(ears, final(0, 2.0), eager(0)) == [final(0, 2.0)]
    assert ears.resumed(1900) == []


def test_what_is_stable_stays_stable() -> None:
    ears = heard(start(1.0), partial(0, 2.0, "turn on the", 7))
    ears.resumed(500)
    assert told(ears, partial(0, 2.5, "turn off", 0), partial(0, 3.0, "turn on it", 4)) == [
        partial(0, 3.0, "turn on it", 7)
    ]


def test_acks_do_not_go_back_and_bad_audio_is_told_once() -> None:
    bad = {"type": "error", "code": "invalid_audio"}
    ears = heard(ack(5.0, 4.0), bad)
    ears.resumed(4000)
    assert told(ears, ack(4.5, 4.0), bad, ack(5.5, 4.0)) == [ack(5.5, 4.0)]


def test_undisturbed_everything_is_told() -> None:
    heard(start(1.0), partial(0, 1.5, "a"), end(2.0), final(0, 2.0), {"type": "pong"}, ENDED)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 5), st.data())
def test_however_often_it_breaks_every_start_has_one_end_and_every_final_comes_once(
    lengths: list[int], breaks: int, data: st.DataObject
) -> None:
    """A server that goes on behind any utterance, having sent or lost any number of messages."""
    script = list[tuple[int, dict[str, Any]]]()  # utterance, event
    at = 1.0
    for number, length in enumerate(lengths):
        script.append((number, start(at)))
        for step in range(length):
            script.append((number, partial(number, at + step + 0.5, "a " * step, 2 * step)))
        at += length
        script += [(number, end(at)), (number, final(number, at))]
        at += 1.0
    script.append((len(lengths), ENDED))
    ears, got, place = Heard(), list[dict[str, Any]](), 0
    for left in range(breaks, -1, -1):
        stop = data.draw(st.integers(place, len(script) - 1)) if left else len(script)
        for _, event in script[place:stop]:
            got += ears.hear(json.loads(json.dumps(event)))
        if left:
            # Finals before `saved` are kept; the snapshot may be older, no final is ahead of it.
            finals = [n for n, event in script[: stop + 3] if event["type"] == "transcript.final"]
            number = int(ears.last_segment[4:] or -1)
            saved = max([*finals, number])
            first = data.draw(st.integers(max(0, number), saved + 1)) if saved >= 0 else 0
            offset = 0.0 if first == 0 else 1.0 + sum(lengths[:first]) + first - 0.8
            ears.resumed(offset * 1000)
            for n, event in script:
                if event["type"] == "transcript.final" and number < n <= saved:
                    got += ears.hear(event)
            place = next(index for index, (n, _) in enumerate(script) if n == first)
    finals = [event["segment_id"] for event in got if event["type"] == "transcript.final"]
    assert finals == [f"seg_{number:04}" for number in range(len(lengths))]
    speech = [event["type"] for event in got if event["type"].startswith("vad.")]
    assert speech == ["vad.speech_start", "vad.speech_end"] * (len(speech) // 2)
    times = [event["timestamp"] for event in got if event["type"].startswith("vad.")]
    assert times == sorted(times)
    assert [event["type"] for event in got].count("session.end") == 1


def test_of_two_channels_the_slower_says_what_is_needed() -> None:
    said = Sent(channels=2)
    said.begin(CONFIG)
    for frame in (*seconds(4), CONFIGURE, '{"type": "config", "channel": 1}'):
        said.hold(frame)  # half a second each
        said.take()
    said.acknowledged(ack(1.5, 1.0), 0)
    said.go_back(0)
    assert len(taken(said)) == 6  # the other channel may need it all
    said.acknowledged(ack(1.2, 0.5), 1)
    with pytest.raises(Gone):
        said.go_back(0)
    assert [said.answered(0), said.answered(1), said.answered(1)] == [True] * 3
    said.go_back(500)
    assert taken(said)[:1] == [b"\1" * SECOND]
    assert [said.answered(0), said.answered(0)] == [False, True]
    assert [said.answered(1) for _ in range(3)] == [False, False, True]
