"""
How fast a client may send. No I/O, no clock.

Somebody who speaks sends a second in a second; somebody who sends a file sends as fast as the
connection takes it. So there is a bucket: it holds a burst, fills at somewhat more than real time,
and while it is empty the client is not read from, which its own connection makes it feel. One
that keeps pushing for too long all the same is refused. Messages have a bucket of their own: each
costs a parser and perhaps an answer, whether or not it says anything. So do pings, and a fragment
of a message costs a part of that.
"""

from dataclasses import dataclass

from dalston.orchestrator.protocol.messages import SessionConfig

# The least that a frame of audio counts, in seconds: handling it costs something too. Browsers hand
# out 128 samples at a time, 2.7 ms at 48 kHz.
SHORTEST_FRAME_S = 0.0025
# What a fragment counts as a message, besides the message that it is part of: libraries that cut
# messages make ten of a large one.
FRAGMENT = 0.1
MESSAGE = 1024  # characters above which a message counts as several


@dataclass(frozen=True)
class PaceLimits:
    rate: float  # seconds of audio, or messages, in a second
    burst: float  # how much may come at once, above the rate
    held_s: float  # how long a client may be slowed down before it is refused


class TooFast(Exception):
    """A client keeps sending too fast; the message says how fast."""


class Pace:
    def __init__(self, audio: PaceLimits, messages: PaceLimits, config: SessionConfig, now: float):
        self._bytes_per_second = config.bytes_per_second
        self._audio = _Bucket(
            audio, "audio comes faster than {0} times real time, for {2} s beyond {1} s of it", now
        )
        self._messages = _Bucket(
            messages, "messages come faster than {0} a second, for {2} s beyond {1} of them", now
        )

    def exempt(self, seconds: float) -> None:
        """So much audio is sent again, by a client that resumes: it does not count."""
        self._audio.left += seconds

    def receive(self, frame: str | bytes, now: float) -> float:
        """A frame came: the seconds to wait before more are read. Raises TooFast."""
        if isinstance(frame, str):
            return self._messages.take(max(1, len(frame) / MESSAGE), now)
        return self._audio.take(max(SHORTEST_FRAME_S, len(frame) / self._bytes_per_second), now)

    def receive_part(self, fragment: bool, now: float) -> float:
        """The same of a fragment, or of a frame that is no message at all, as a ping."""
        return self._messages.take(FRAGMENT if fragment else 1, now)


class _Bucket:
    def __init__(self, limits: PaceLimits, sentence: str, now: float):
        self._limits, self._sentence = limits, sentence
        self.left = limits.burst
        self._filled = now
        self._slowed: float | None = None  # since

    def take(self, amount: float, now: float) -> float:
        limits = self._limits
        if self.left < limits.burst:  # else there is more by exemption
            self.left = min(limits.burst, self.left + (now - self._filled) * limits.rate)
        self._filled = now
        self.left -= amount
        if self.left >= 0:
            self._slowed = None
            return 0.0
        if self._slowed is None:
            self._slowed = now
        elif now - self._slowed >= limits.held_s:
            numbers = (f"{number:g}" for number in (limits.rate, limits.burst, limits.held_s))
            raise TooFast(self._sentence.format(*numbers))
        return -self.left / limits.rate
