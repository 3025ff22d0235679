"""
When a client without audio is muted, the clock in the test's hands.
"""

import pytest

from dalston.orchestrator.protocol.messages import Frame, SessionConfig
from dalston.orchestrator.protocol.mute import Mute

CONFIG = SessionConfig()
TENTH = bytes(3200)
LOOK = 0.4


def flushes(
    frames: dict[float, Frame],
    until: float = 20.0,
    after_s: float = 2.0,
    config: SessionConfig = CONFIG,
    unread: tuple[float, float] = (0.0, 0.0),
) -> list[float]:
    """When it flushes, of frames that come at these times."""
    mute, coming, found = Mute(after_s, config), sorted(frames.items()), list[float]()
    looks = [LOOK * n for n in range(round(until / LOOK))]
    for now in looks:
        while coming and coming[0][0] <= now:
            at, frame = coming.pop(0)
            mute.receive(frame, at)
        if mute.look(now, read=not unread[0] <= now < unread[1]):
            found.append(round(now, 1))
    return found


def speech(first: float, last: float) -> dict[float, Frame]:
    return {first + 0.1 * n: TENTH for n in range(round(10 * (last - first)))}


def test_who_stops_sending_is_muted_once() -> None:
    (at,) = flushes(speech(0.0, 3.0))
    assert 5.0 <= at <= 5.0 + 2 * LOOK


def test_who_sends_again_and_stops_again_is_muted_again() -> None:
    assert len(flushes(speech(0.0, 3.0) | speech(8.0, 9.0))) == 2


@pytest.mark.parametrize("gap", [0.5, 1.0, 1.9])
def test_frames_that_come_late_and_then_at_once_are_no_mute(gap: float) -> None:
    late: dict[float, Frame] = {3.0 + gap + 0.001 * n: TENTH for n in range(round(10 * gap))}
    assert flushes(speech(0.0, 3.0) | late | speech(3.1 + gap, 18.0), until=18.0) == []


def test_who_sends_long_frames_has_as_long_for_the_next() -> None:
    five_seconds: dict[float, Frame] = {5.0 * n: bytes(160_000) for n in range(4)}
    assert flushes(five_seconds, until=20.0) == []


def test_pings_and_settings_are_no_audio() -> None:
    signs: dict[float, Frame] = {
        3.5: '{"type":"ping"}',
        4.0: '{"type":"config","language":"en"}',
        4.5: '{"type": "ping" }',
        4.6: "nonsense",
    }
    assert len(flushes(speech(0.0, 3.0) | signs)) == 1


@pytest.mark.parametrize("kind", ["flush", "commit", "clear", "end"])
def test_who_says_that_it_is_over_is_not_told_so(kind: str) -> None:
    assert flushes(speech(0.0, 3.0) | {3.0: f'{{"type":"{kind}"}}'}) == []


def test_who_has_said_nothing_yet_is_not_muted() -> None:
    assert flushes({1.0: '{"type":"ping"}'}) == []


def test_who_is_not_read_is_not_muted() -> None:
    (at,) = flushes(speech(0.0, 3.0), unread=(3.0, 12.0))
    assert 14.0 - LOOK <= at <= 14.0 + 2 * LOOK


def test_zero_is_never_and_so_is_manual_endpointing() -> None:
    assert flushes(speech(0.0, 3.0), after_s=0.0) == []
    assert flushes(speech(0.0, 3.0), config=SessionConfig(endpointing="manual")) == []


def test_what_came_while_nobody_looked_is_not_overlooked() -> None:
    mute = Mute(2.0, CONFIG)
    mute.receive(TENTH, 0.0)
    assert not mute.look(9.0, read=True)  # the process stood still: its sockets are read next
    mute.receive(TENTH, 9.0)
    assert not mute.look(9.4, read=True)
