"""
Lag, with the clock and the positions in the test's hands.
"""

from dataclasses import dataclass, field

import pytest

from dalston.orchestrator.transcription.lag import (
    WARNING_EVERY_S,
    Crowd,
    Lag,
    LagLimits,
    Verdict,
)

RATE = 16_000
TICK = 0.25


@dataclass
class Stream:
    """Audio that comes, and a server that hears it, both at a speed of the test's."""

    lag: Lag = field(default_factory=lambda: Lag(LagLimits(), 0, 100.0))
    now: float = 100.0
    received: float = 0.0  # seconds
    processed: float = 0.0

    def measure(self, failing: bool = False, loading: bool = False) -> Verdict:
        received, processed = round(self.received * RATE), round(self.processed * RATE)
        return self.lag.measure(received, processed, failing, self.now, loading)

    def go(
        self,
        seconds: float,
        *,
        speed: float,
        sent: float = 1.0,
        failing: bool = False,
        loading: bool = False,
    ) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.received += sent * TICK
            self.processed = min(self.received, self.processed + speed * TICK)
            verdicts.append(self.measure(failing, loading))
        return verdicts


def test_a_server_that_keeps_up_has_no_lag() -> None:
    stream = Stream()
    assert set(stream.go(60, speed=1)) == {Verdict.FINE}
    assert stream.lag.seconds == 0


def test_lag_is_what_was_said_and_is_not_processed() -> None:
    stream = Stream()
    stream.go(8, speed=0.75)
    assert stream.lag.seconds == 2.0


def test_above_three_seconds_it_is_warned_of_every_five() -> None:
    stream = Stream()
    assert set(stream.go(3, speed=0)) == {Verdict.FINE}
    verdicts = stream.go(4 * WARNING_EVERY_S, speed=1)
    assert verdicts.count(Verdict.WARN) == 0  # three, not above
    stream.go(1, speed=0)
    verdicts = stream.go(4 * WARNING_EVERY_S, speed=1)
    assert 3 <= verdicts.count(Verdict.WARN) <= 4
    assert stream.lag.overloaded
    assert set(stream.go(60, speed=2)) == {Verdict.FINE}
    assert not stream.lag.overloaded


def test_above_five_seconds_held_for_two_it_is_exceeded() -> None:
    stream = Stream()
    verdicts = stream.go(20, speed=0)
    first = verdicts.index(Verdict.EXCEEDED)
    assert first * TICK == 7.0


def test_above_five_seconds_for_a_moment_it_is_not() -> None:
    stream = Stream()
    for _ in range(5):
        assert Verdict.EXCEEDED not in stream.go(5.75, speed=0)
        assert Verdict.EXCEEDED not in stream.go(10, speed=2)


def test_at_five_seconds_it_goes_on_for_ever() -> None:
    stream = Stream()
    stream.go(5, speed=0)
    assert Verdict.EXCEEDED not in stream.go(600, speed=1)


def test_a_file_that_comes_at_once_is_due_in_real_time() -> None:
    stream = Stream(received=600.0)
    assert set(stream.go(60, speed=1, sent=0)) == {Verdict.FINE}
    assert stream.lag.seconds == 0


def test_a_file_that_is_processed_slower_than_real_time_lags() -> None:
    stream = Stream(received=600.0)
    assert Verdict.EXCEEDED in stream.go(20, speed=0.5, sent=0)


def test_audio_that_comes_late_is_not_the_server_s_lag() -> None:
    stream = Stream()
    stream.go(5, speed=1)
    stream.go(25, speed=1, sent=0)  # the line is dead
    stream.received += 25  # it lives again
    assert set(stream.go(20, speed=1)) == {Verdict.FINE}


def test_a_session_that_goes_on_here_begins_here() -> None:
    stream = Stream(Lag(LagLimits(), 1000 * RATE, 100.0), received=1020.0, processed=1000.3)
    assert stream.measure() is Verdict.FINE
    assert set(stream.go(30, speed=1)) == {Verdict.FINE}


def test_while_models_fail_nothing_follows_from_lag() -> None:
    stream = Stream()
    stream.go(2, speed=1)
    assert set(stream.go(20, speed=0, failing=True)) == {Verdict.FINE}
    assert stream.lag.seconds == 20
    assert not stream.lag.overloaded


def test_nor_until_it_is_caught_up() -> None:
    stream = Stream()
    stream.go(20, speed=0, failing=True)
    assert set(stream.go(8, speed=3)) == {Verdict.FINE}
    assert stream.lag.seconds > 3
    stream.go(2, speed=3)
    # Caught up: what comes now is lag again.
    verdicts = stream.go(20, speed=0)
    assert Verdict.WARN in verdicts
    assert Verdict.EXCEEDED in verdicts


def test_but_no_longer_than_an_outage_may_last() -> None:
    stream = Stream()
    assert set(stream.go(10, speed=0, failing=True)) == {Verdict.FINE}
    verdicts = stream.go(30, speed=1)
    # Suspended for 30 s, then held for 2.
    assert verdicts.index(Verdict.EXCEEDED) * TICK == 22.0


def test_failures_that_come_again_do_not_make_it_longer() -> None:
    stream = Stream()
    stream.go(8, speed=0, failing=True)
    verdicts: list[Verdict] = []
    for _ in range(10):
        verdicts += stream.go(2, speed=1)
        verdicts += stream.go(2, speed=1, failing=True)
    assert verdicts.index(Verdict.EXCEEDED) * TICK == 24.0


def test_a_model_may_take_as_long_as_it_likes_to_be_loaded() -> None:
    stream = Stream()
    assert set(stream.go(120, speed=0, loading=True)) == {Verdict.FINE}
    assert set(stream.go(29, speed=3)) == {Verdict.FINE}
    # What it then does not do is lag after an outage's time.
    assert Verdict.EXCEEDED in stream.go(20, speed=0)


# Sessions that lag together.


@dataclass
class Together:
    """Sessions that share models which hear so many seconds of audio in a second, those first that
    lag most, or all alike."""

    capacity: float
    sessions: list[Stream]
    ended: int = 0

    def go(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            share = self.capacity / max(1, len(self.sessions))
            over = list[Stream]()
            for session in self.sessions:
                if Verdict.EXCEEDED in session.go(TICK, speed=share):
                    over.append(session)
            self.ended += len(over)
            self.sessions = [session for session in self.sessions if session not in over]

    @property
    def most_lag(self) -> float:
        return max((session.lag.seconds for session in self.sessions), default=0.0)


def together(count: int, capacity: float, apart_s: float = 0.0) -> Together:
    crowd = Crowd()
    streams = [Stream(Lag(LagLimits(), 0, 100.0, crowd)) for _ in range(count)]
    for number, stream in enumerate(streams):
        stream.received = stream.processed = number * apart_s
        stream.measure()
    return Together(capacity, streams)


# 001-22
@pytest.mark.parametrize(
    ("count", "capacity", "most"),
    [(2, 1.5, 1), (8, 7.0, 2), (8, 4.5, 5), (20, 18.0, 3), (100, 50.0, 60)],
)
def test_of_sessions_that_lag_together_no_more_end_than_needed(
    count: int, capacity: float, most: int
) -> None:
    all_of_them = together(count, capacity)
    all_of_them.go(240)
    assert count - capacity <= all_of_them.ended <= most
    assert all_of_them.most_lag < 5.0


def test_the_one_with_the_most_lag_ends_first() -> None:
    crowd = Crowd()
    streams = [Stream(Lag(LagLimits(), 0, 100.0, crowd)) for _ in range(3)]
    speeds = (0.3, 0.1, 0.2)
    ends = list[int]()
    for _ in range(200):
        ends = [
            at
            for at, stream in enumerate(streams)
            if Verdict.EXCEEDED in stream.go(TICK, speed=speeds[at])
        ]
        if ends:
            break
    assert ends == [1]


def test_nobody_lags_for_ever() -> None:
    stuck = together(4, 0.0)
    stuck.go(LagLimits().limit_s + LagLimits().longest_s + 3)
    assert stuck.sessions == []


def test_a_session_that_is_over_is_no_reason_for_others_to_end() -> None:
    crowd = Crowd()
    gone, other = (Stream(Lag(LagLimits(), 0, 100.0, crowd)) for _ in range(2))
    gone.go(6, speed=0)
    gone.lag.over()
    other.go(6, speed=0)
    assert Verdict.EXCEEDED not in other.go(4, speed=3)
