"""
Who may send how fast, with the clock in the test's hands.
"""

from dataclasses import dataclass, replace

import pytest

from dalston.gateway.calls.pace import SHORTEST_FRAME_S, Pace, PaceLimits, TooFast
from dalston.gateway.settings import GatewaySettings
from dalston.orchestrator.protocol.messages import Encoding, SessionConfig

LIMITS = PaceLimits(rate=1.5, burst=60.0, held_s=60.0)
FOR_FILES = 14_400.0  # held_s, as it is set: a file may be pushed to its end
MESSAGES = PaceLimits(rate=10.0, burst=100.0, held_s=60.0)
SECOND = 2 * 16_000  # bytes


@dataclass
class Client:
    """Sends frames, and waits when it is not read from."""

    pace: Pace
    now: float = 0.0
    sent: float = 0.0  # seconds of audio

    def send(self, seconds: float) -> float:
        wait = self.pace.receive(bytes(round(seconds * SECOND)), self.now)
        self.sent += seconds
        self.now += wait
        return wait

    def push(self, seconds: float) -> None:
        """As fast as it is read."""
        for _ in range(round(seconds)):
            self.send(1.0)


def client() -> Client:
    return Client(Pace(LIMITS, MESSAGES, SessionConfig(), 0.0))


def test_somebody_who_speaks_never_waits() -> None:
    speaker = client()
    for _ in range(4 * 3600):
        assert speaker.send(1.0) == 0
        speaker.now += 1.0


def test_one_and_a_half_times_real_time_never_waits() -> None:
    reader = client()
    for _ in range(3600):
        assert reader.send(1.5) == 0
        reader.now += 1.0


def test_a_minute_at_once_is_a_burst() -> None:
    file = client()
    file.push(60)
    assert file.now == 0


# L-03
def test_what_is_beyond_the_burst_is_read_at_one_and_a_half_times_real_time() -> None:
    file = client()
    file.push(60 + 75)
    assert file.now == pytest.approx(75 / 1.5)


def test_one_that_keeps_pushing_for_a_minute_is_refused() -> None:
    file = client()
    with pytest.raises(TooFast, match=r"1\.5 times real time"):
        file.push(3600)
    assert 60 <= file.now < 62
    assert file.sent == pytest.approx(60 + 1.5 * 60, abs=2)


def test_one_that_slows_down_in_time_is_not_refused() -> None:
    file = client()
    for _ in range(5):
        file.push(60 + 60)  # 40 s at the limit
        for _ in range(130):  # then somebody speaks
            file.send(1.0)
            file.now += 1.0


def test_a_burst_comes_again_after_a_rest_but_never_a_larger_one() -> None:
    file = client()
    file.push(60)
    file.now += 3600
    file.push(60)
    assert file.now == 3600
    assert file.send(1.0) > 0


def test_what_a_client_sends_again_does_not_count() -> None:
    resumed = client()
    resumed.pace.exempt(90)
    resumed.push(60 + 90)
    assert resumed.now == 0
    assert resumed.send(1.0) > 0


def test_a_browser_that_sends_128_samples_at_a_time_never_waits() -> None:
    pace = Pace(LIMITS, MESSAGES, SessionConfig(sample_rate=48_000), 0.0)
    for number in range(375 * 600):
        assert pace.receive(bytes(256), number / 375) == 0


def test_empty_frames_are_slowed_down() -> None:
    empty = client()
    for _ in range(round(60 / SHORTEST_FRAME_S)):
        assert empty.pace.receive(b"", 0.0) == 0
    assert empty.pace.receive(b"", 0.0) > 0


def test_ten_messages_a_second_never_wait_and_more_are_slowed_to_that() -> None:
    talker = client()
    for number in range(6000):
        assert talker.pace.receive("{}", number / 10) == 0
    for _ in range(100):
        assert talker.pace.receive("{}", 1000.0) == 0
    assert talker.pace.receive("{}", 1000.0) == pytest.approx(0.1)
    # Whoever floods with words may still speak.
    assert talker.send(1.0) == 0


def test_a_flood_of_messages_for_a_minute_is_refused() -> None:
    talker, now = client(), 0.0
    while now < 60:
        now += talker.pace.receive("{}", now)
    with pytest.raises(TooFast, match="faster than 10 a second, for 60 s beyond 100 of them"):
        talker.pace.receive("{}", now)


def test_a_long_message_counts_as_several() -> None:
    talker = client()
    assert talker.pace.receive("x" * 1024 * 99, 0.0) == 0
    assert talker.pace.receive("x" * 1024, 0.0) == 0
    assert talker.pace.receive("x" * 1024 * 10, 0.0) == pytest.approx(1.0)


def test_pings_and_what_else_is_no_message_count_as_messages() -> None:
    talker = client()
    for _ in range(50):
        assert talker.pace.receive_part(False, 0.0) == 0
        assert talker.pace.receive("{}", 0.0) == 0
    assert talker.pace.receive_part(False, 0.0) == pytest.approx(0.1)
    now = 0.0
    while now < 60:
        now += talker.pace.receive_part(False, now)
    with pytest.raises(TooFast, match="faster than 10 a second"):
        talker.pace.receive_part(False, now)


def test_a_hundred_fragments_a_second_never_wait_and_more_are_slowed_to_that() -> None:
    talker = client()
    for number in range(60_000):
        assert talker.pace.receive_part(True, number / 100) == 0
    for _ in range(1000):
        talker.pace.receive_part(True, 1000.0)
    assert talker.pace.receive_part(True, 1000.0) == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize(
    ("encoding", "rate", "channels", "size"),
    [
        ("pcm_s16le", 48_000, 2, 192_000),
        ("pcm_s16le", 24_000, 1, 48_000),
        ("pcm_f32le", 44_100, 1, 176_400),
        ("mulaw", 8_000, 1, 8_000),
        ("alaw", 8_000, 2, 16_000),
    ],
)
def test_a_second_is_a_second_in_every_encoding(
    encoding: Encoding, rate: int, channels: int, size: int
) -> None:
    config = SessionConfig(encoding=encoding, sample_rate=rate, channels=channels)
    pace = Pace(LIMITS, MESSAGES, config, 0.0)
    for _ in range(60):
        assert pace.receive(bytes(size), 0.0) == 0
    assert pace.receive(bytes(3 * size), 0.0) == pytest.approx(2)


def test_the_defaults_are_the_documented_ones() -> None:
    settings = GatewaySettings(REDIS_URL="redis://here")  # pyright: ignore[reportCallIssue]
    held = (settings.audio_rate, settings.audio_burst_seconds, settings.audio_held_seconds)
    assert PaceLimits(*held) == replace(LIMITS, held_s=FOR_FILES)
    told = (settings.message_rate, settings.message_burst, settings.message_held_seconds)
    assert PaceLimits(*told) == MESSAGES
