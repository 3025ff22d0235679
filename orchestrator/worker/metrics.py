"""
What a worker counts, for Prometheus: every metric, with its help and its buckets.

Events are counted where they happen, a few for each utterance. What sessions count themselves
(audio, texts, lag) is summed up when somebody asks, so it costs nothing while people speak.
docs/operations.md lists all of them; Triton has a page of its own, with the sizes of its batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from prometheus_client import (
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dalston.orchestrator.inference.metrics import REGISTRY
from dalston.orchestrator.protocol.messages import Stats
from dalston.orchestrator.transcription.lag import Lag
from dalston.orchestrator.transcription.session import Session
from dalston.triton.contract import SAMPLE_RATE

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_EVENTS = REGISTRY  # with what is counted where Triton is asked
ProcessCollector(registry=_EVENTS)

# Seconds that people wait: told apart where it matters, around the SLO.
WAITING = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_STAGE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

_STAGES = Histogram(
    "dalston_worker_stage_seconds",
    "Where the time of finals goes, by stage (orchestrator/worker/stage_times.py).",
    ["stage"],
    buckets=_STAGE,
    registry=_EVENTS,
)
FINAL = Histogram(
    "dalston_worker_final_seconds",
    "From when an utterance is known to be over until its final is told.",
    buckets=WAITING,
    registry=_EVENTS,
)
FIRST_PARTIAL = Histogram(
    "dalston_worker_first_partial_seconds",
    "Audio received since an utterance began, when its first partial is told.",
    buckets=WAITING,
    registry=_EVENTS,
)
LAG_WARNINGS = Counter(
    "dalston_worker_lag_warnings",
    "Warnings of lag that sessions were told.",
    registry=_EVENTS,
)
RETRIED = Counter(
    "dalston_worker_decodes_retried",
    "Finals that a model failed on and that were asked again, by Whisper variant.",
    ["model"],
    registry=_EVENTS,
)
FAILED = Counter(
    "dalston_worker_decodes_failed",
    "Partials and finals that were given up, by Whisper variant.",
    ["model", "kind"],
    registry=_EVENTS,
)
SPEECH_LOST = Counter(
    "dalston_worker_speech_lost",
    "Sequences of the VAD that broke off and were started again.",
    registry=_EVENTS,
)
TURNS_JUDGED = Counter(
    "dalston_worker_turns_judged",
    "Pauses of endpointing=smart, by whether a model answered if the turn is over.",
    ["answered"],
    registry=_EVENTS,
)
OUT_OF_MEMORY = Counter(
    "dalston_worker_out_of_memory",
    "Times a model said that its memory is used up.",
    registry=_EVENTS,
)
ENDED = Counter(
    "dalston_worker_sessions_ended",
    "Sessions that ended, by close code (docs/protocol.md); gone is a client that left.",
    ["code"],
    registry=_EVENTS,
)
REFUSED = Counter(
    "dalston_worker_sessions_refused",
    "Sessions that did not begin, by the code of the error.",
    ["code"],
    registry=_EVENTS,
)


@cache
def _stage(name: str) -> Histogram:
    return _STAGES.labels(name)


# To observe costs some 20 steps of Python, several times for each hop of each session. So it is
# done many at a time, or when somebody looks.
_took = list[tuple[str, float]]()
_AT_ONCE = 256


def stage_took(name: str, seconds: float) -> None:
    _took.append((name, seconds))
    if len(_took) >= _AT_ONCE:
        _observe()


def _observe() -> None:
    for name, seconds in _took:
        _stage(name).observe(seconds)
    _took.clear()


@dataclass(frozen=True)
class WorkerState:
    """What is true of a worker at this moment."""

    capacity: int
    healthy: bool
    draining: bool
    redis_errors: int
    pending: Mapping[str, int]  # requests under way, by Triton
    asleep: Sequence[tuple[str, str]] = ()  # Triton and model: unloaded until a session comes


class SessionCounts:
    """What the sessions of a worker count themselves: those that run, and those that ended."""

    def __init__(self) -> None:
        self._running: dict[Session, tuple[int, Lag]] = {}  # audio it began with
        self._stats, self._audio_s = Stats(), 0.0  # of those that ended

    def began(self, session: Session, lag: Lag) -> None:
        self._running[session] = (session.received, lag)

    def ended(self, session: Session) -> None:
        began, _ = self._running.pop(session)
        self._audio_s += (session.received - began) / SAMPLE_RATE
        self._stats = _sum(self._stats, session.stats)

    def __len__(self) -> int:
        return len(self._running)

    @property
    def lag_s(self) -> float:
        """The lag of the session that lags most, in seconds."""
        return max((lag.seconds for _, lag in self._running.values()), default=0.0)

    @property
    def audio_s(self) -> float:
        running = sum(session.received - began for session, (began, _) in self._running.items())
        return self._audio_s + running / SAMPLE_RATE

    @property
    def stats(self) -> Stats:
        total = self._stats
        for session in self._running:
            total = _sum(total, session.stats)
        return total


def _sum(a: Stats, b: Stats) -> Stats:
    return Stats(
        a.partials + b.partials,
        a.finals + b.finals,
        a.speculative_finals_used + b.speculative_finals_used,
        a.speculative_finals_dropped + b.speculative_finals_dropped,
        a.stable_words + b.stable_words,
        a.stable_words_changed + b.stable_words_changed,
        a.partial_window_seconds + b.partial_window_seconds,
        a.final_window_seconds + b.final_window_seconds,
    )


@dataclass(frozen=True)
class _Now(Collector):
    """What is not counted but looked up."""

    state: WorkerState
    sessions: SessionCounts

    def collect(self) -> Iterator[Metric]:
        state, sessions, stats = self.state, self.sessions, self.sessions.stats
        for name, help, value in (
            ("sessions", "Sessions that run.", len(sessions)),
            ("capacity", "Sessions it takes; fewer when memory ran out.", state.capacity),
            ("healthy", "1 if sessions would work.", state.healthy),
            ("draining", "1 if it takes no new sessions because it ends.", state.draining),
            ("lag_seconds", "The lag of the session that lags most, in seconds.", sessions.lag_s),
        ):
            yield GaugeMetricFamily(f"dalston_worker_{name}", help, value)
        for name, help, value in (
            ("audio_seconds", "Audio received.", sessions.audio_s),
            ("partials", "Partials told.", stats.partials),
            ("finals", "Finals told.", stats.finals),
            ("stable_words", "Words that partials had declared stable.", stats.stable_words),
            ("stable_words_changed", "Of these, changed by the final.", stats.stable_words_changed),
            ("redis_errors", "Operations on slots that Redis failed.", state.redis_errors),
        ):
            yield CounterMetricFamily(f"dalston_worker_{name}", help, value)
        speculative = CounterMetricFamily(
            "dalston_worker_speculative_finals",
            "Finals that were asked for in a pause, by whether it was the end.",
            labels=["outcome"],
        )
        speculative.add_metric(["used"], stats.speculative_finals_used)
        speculative.add_metric(["dropped"], stats.speculative_finals_dropped)
        yield speculative
        windows = CounterMetricFamily(
            "dalston_worker_window_seconds",
            "What encoders saw, silence that fills their windows included, by kind of transcript.",
            labels=["kind"],
        )
        windows.add_metric(["partial"], stats.partial_window_seconds)
        windows.add_metric(["final"], stats.final_window_seconds)
        yield windows
        pending = GaugeMetricFamily(
            "dalston_worker_requests_pending",
            "Requests under way or waiting for their turn, by Triton.",
            labels=["triton"],
        )
        for url, count in state.pending.items():
            pending.add_metric([url], count)
        yield pending
        asleep = GaugeMetricFamily(
            "dalston_worker_model_asleep",
            "1 for a model that is unloaded because nobody used it.",
            labels=["triton", "model"],
        )
        for labels in state.asleep:
            asleep.add_metric(labels, 1)
        yield asleep


def page(state: WorkerState, sessions: SessionCounts) -> bytes:
    """In Prometheus's text format."""
    _observe()
    return generate_latest(_EVENTS) + generate_latest(_Now(state, sessions))
