"""
The lag of a session after its audio, and when it is too much. No I/O, no clock.

    lag     = min(received, wall time since the session began) - processed

in seconds of the session's audio. What is processed is decided, and its finals are told; so all
that waits for a model counts. Wall time stands still while nothing is there to be processed: audio
that comes late, and then at once, is not our lag, nor is audio that comes before its time. A
session that goes on in another worker begins there.

While models fail, lag is no sign of overload: from then until it is caught up, but OUTAGE_SECONDS
at most, nothing follows from it. The time that a model takes to be loaded is none of these.
"""

from dataclasses import dataclass
from enum import Enum, auto

from dalston.orchestrator.protocol.messages import Error, ServerMessage, SessionTerminated, Warn
from dalston.triton.contract import SAMPLE_RATE

WARNING_EVERY_S = 5.0


@dataclass(frozen=True)
class LagLimits:
    warning_s: float = 3.0
    limit_s: float = 5.0
    held_s: float = 2.0  # above the limit, before a session ends
    outage_s: float = 30.0  # that lag is suspended


class Verdict(Enum):
    FINE = auto()
    WARN = auto()  # above the warning threshold, and not warned of lately
    EXCEEDED = auto()  # above the limit for too long


class Lag:
    def __init__(self, limits: LagLimits, position: int, now: float):
        """Of a session whose audio is received up to `position` now."""
        self.limits = limits
        self.seconds = 0.0  # when it was last measured, suspended or not
        self.suspended = False
        self._due = float(position)  # what should be processed by now: samples
        self._measured = now
        self._outage: float | None = None  # since
        self._above: float | None = None  # the limit, since
        self._next_warning = now

    @property
    def overloaded(self) -> bool:
        """Whether the models have more to do than they can."""
        return self.seconds > self.limits.warning_s and not self.suspended

    def measure(
        self, received: int, processed: int, failing: bool, now: float, loading: bool = False
    ) -> Verdict:
        """`failing`: a model fails, or does not answer at all. `loading`: it is being loaded."""
        elapsed, self._measured = now - self._measured, now
        self._due = min(float(received), self._due + elapsed * SAMPLE_RATE)
        self.seconds = max(0.0, self._due - processed) / SAMPLE_RATE
        if loading:
            self._outage = now
        elif failing:
            self._outage = now if self._outage is None else self._outage
        elif self.seconds <= self.limits.warning_s:
            self._outage = None  # caught up
        self.suspended = self._outage is not None and now - self._outage < self.limits.outage_s
        if self.suspended or self.seconds <= self.limits.limit_s:
            self._above = None
        elif self._above is None:
            self._above = now
        if self._above is not None and now - self._above >= self.limits.held_s:
            return Verdict.EXCEEDED
        if self.overloaded and now >= self._next_warning:
            self._next_warning = now + WARNING_EVERY_S
            return Verdict.WARN
        return Verdict.FINE

    def warning(self) -> Warn:
        return Warn(
            code="processing_lag",
            message="Processing lag is above threshold",
            lag_seconds=round(self.seconds, 2),
            warning_threshold_seconds=self.limits.warning_s,
            hard_threshold_seconds=self.limits.limit_s,
        )

    def last_words(self, session_id: str, last_transcript_s: float | None) -> list[ServerMessage]:
        """What a session says last that lags too much; `last_transcript_s` is where the last
        of its finals ended."""
        limit_s = self.limits.limit_s
        sentence = f"{self.seconds:.1f} s behind; a session ends above {limit_s:g} s"
        offset_ms = None if last_transcript_s is None else round(last_transcript_s * 1000)
        return [
            Error(code="lag_exceeded", message=sentence, recoverable=False),
            SessionTerminated(
                session_id=session_id,
                reason="lag_exceeded",
                recoverable=False,
                last_transcript_offset_ms=offset_ms,
            ),
        ]
