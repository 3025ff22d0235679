"""
How fast a client may send audio. No I/O, no clock.

Somebody who speaks sends a second in a second; somebody who sends a file sends as fast as the
connection takes it. So there is a bucket: it holds a burst, fills at somewhat more than real time,
and while it is empty the client is not read from, which its own connection makes it feel. One
that keeps pushing for too long all the same is refused.
"""

from dataclasses import dataclass

from dalston.orchestrator.messages import SessionConfig


@dataclass(frozen=True)
class PaceLimits:
    rate: float = 1.5  # seconds of audio in a second
    burst_s: float = 60.0  # of audio, beyond that
    held_s: float = 60.0  # of being slowed down, before it is refused


class TooFast(Exception):
    """A client goes on pushing; says how much in a sentence."""


class Pace:
    def __init__(self, limits: PaceLimits, config: SessionConfig, now: float):
        self._limits = limits
        self._bytes_per_second = config.bytes_per_second
        self._left = limits.burst_s  # in the bucket: seconds of audio
        self._filled = now
        self._slowed: float | None = None  # since

    def exempt(self, seconds: float) -> None:
        """So much audio is sent again, by a client that resumes: it does not count."""
        self._left += seconds

    def receive(self, size: int, now: float) -> float:
        """So many bytes of audio came: the seconds to wait before more are read. Raises TooFast."""
        limits = self._limits
        if self._left < limits.burst_s:  # else there is more by exemption
            filled = self._left + (now - self._filled) * limits.rate
            self._left = min(limits.burst_s, filled)
        self._filled = now
        self._left -= size / self._bytes_per_second
        if self._left >= 0:
            self._slowed = None
            return 0.0
        if self._slowed is None:
            self._slowed = now
        elif now - self._slowed >= limits.held_s:
            sentence = f"audio comes faster than {limits.rate:g} times real time"
            raise TooFast(f"{sentence}, for {limits.held_s:g} s beyond {limits.burst_s:g} s of it")
        return -self._left / limits.rate
