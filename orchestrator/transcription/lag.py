"""
The lag of a session after its audio, and when it is too much. No I/O, no clock.

    lag     = min(received, wall time since the session began) - processed

in seconds of the session's audio. What is processed is decided, and its finals are told; so all
that waits for a model counts. Wall time stands still while nothing is there to be processed: audio
that comes late, and then at once, is not our lag, nor is audio that comes before its time. A
session that goes on in another worker begins there.

While models fail, lag is no sign of overload: from then until it is caught up, but OUTAGE_SECONDS
at most, nothing follows from it. The time that a model takes to be loaded is none of these.

Sessions that lag too much lag together, for they share the models, and each that ends leaves room
to the others. So only as many end as it takes: those with the most lag, so many at a time as lag
grows fast, and then the others have a while to catch up. Where lag neither grows nor shrinks, one
more ends after longest_s, and so on until it does.
"""

from dataclasses import dataclass
from enum import Enum, auto

from dalston.orchestrator.protocol.messages import Error, ServerMessage, SessionTerminated, Warn
from dalston.triton.contract import SAMPLE_RATE

WARNING_EVERY_S = 5.0
# Seconds of lag in a second: if it shrinks less, it does not.
SHRINKING = 0.02


@dataclass(frozen=True)
class LagLimits:
    warning_s: float = 3.0
    limit_s: float = 5.0
    held_s: float = 2.0  # above the limit, before a session ends
    outage_s: float = 30.0  # that lag is suspended
    pause_s: float = 2.0  # after some have ended, for the others to catch up
    longest_s: float = 30.0  # above the limit, where lag does not shrink


class Verdict(Enum):
    FINE = auto()
    WARN = auto()  # above the warning threshold, and not warned of lately
    EXCEEDED = auto()  # above the limit for too long


class Crowd:
    """The sessions that share models, of which some lag too much."""

    def __init__(self) -> None:
        self._above: dict[Lag, float] = {}  # the limit, and the lag when it was looked at last
        self._since: float | None = None  # when that was
        self._chosen = set[Lag]()
        self._ended = False  # whether anybody did since they began to lag

    def enter(self, lag: "Lag", now: float) -> None:
        self._above[lag] = lag.limits.limit_s
        if self._since is None:
            self._since = now

    def leave(self, lag: "Lag") -> None:
        """It lags too much no more, or it has ended."""
        self._above.pop(lag, None)
        self._chosen.discard(lag)
        if not self._above:
            self._since, self._ended = None, False

    def ends(self, lag: "Lag", now: float) -> bool:
        """Whether one that has lagged too much for long enough is to end now."""
        if lag not in self._above or self._since is None:
            return True  # it was told before
        elapsed = now - self._since
        if elapsed >= lag.limits.pause_s or (elapsed > 0 and not self._ended):
            self._look(now, elapsed, lag.limits.longest_s)
        return lag in self._chosen

    def _look(self, now: float, elapsed: float, longest_s: float) -> None:
        """Choose who ends: half as many as would be too many if lag went on growing like this."""
        oldest = max(lag.above_s(now) for lag in self._above)
        grown = sum(lag.seconds - before for lag, before in self._above.items()) / elapsed
        self._since = now
        self._above = {lag: lag.seconds for lag in self._above}
        by_lag = sorted(self._above, key=lambda lag: lag.seconds, reverse=True)
        shrinks = grown < -SHRINKING * len(by_lag)
        ends = max(1, int(grown / 2)) if grown > 0 else int(oldest >= longest_s and not shrinks)
        self._chosen = set(by_lag[:ends])
        self._ended = self._ended or bool(self._chosen)


class Lag:
    def __init__(self, limits: LagLimits, position: int, now: float, crowd: Crowd | None = None):
        """Of a session whose audio is received up to `position` now. crowd: of those that share
        its models."""
        self.limits = limits
        self._crowd = crowd or Crowd()
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
            self._crowd.leave(self)
        elif self._above is None:
            self._above = now
            self._crowd.enter(self, now)
        held = self._above is not None and now - self._above >= self.limits.held_s
        if held and self._crowd.ends(self, now):
            self._crowd.leave(self)
            return Verdict.EXCEEDED
        if self.overloaded and now >= self._next_warning:
            self._next_warning = now + WARNING_EVERY_S
            return Verdict.WARN
        return Verdict.FINE

    def above_s(self, now: float) -> float:
        """For how long it has been above the limit."""
        return 0.0 if self._above is None else now - self._above

    def over(self) -> None:
        """Its session is."""
        self._crowd.leave(self)

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
