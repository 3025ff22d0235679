"""
What is measured of the waiting for finals, without a clock: the tests say what time it is.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from dalston.orchestrator.protocol.messages import Final, Partial, SessionConfig
from dalston.orchestrator.worker import metrics
from dalston.orchestrator.worker.stage_times import StageTimes

FINAL = Final(
    segment_id="seg_0000",
    text="so",
    start=0.0,
    end=0.5,
    confidence=1.0,
    language="en",
    processing_ms=1,
)


@dataclass
class Position:
    """Of a session: the only thing that stage times ask of one."""

    searched: int = 0
    processed: int = 0
    received: int = 0
    dues: list[int] = field(default_factory=list[int])
    config: SessionConfig = field(default_factory=SessionConfig)

    def final_due(self) -> int:
        return self.dues.pop(0)


def value(name: str) -> float:
    page = metrics.page(
        metrics.WorkerState(1, True, False, 0, {}), metrics.SessionCounts()
    ).decode()
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))


def timed(session: Position) -> tuple[StageTimes, Position]:
    return StageTimes(cast(Any, session)), session


def waited(times: StageTimes, now: float) -> float:
    before = value("dalston_worker_final_seconds_sum")
    times.told(FINAL, now)
    return value("dalston_worker_final_seconds_sum") - before


def test_a_final_is_waited_for_from_where_its_end_was_heard() -> None:
    times, session = timed(Position())
    for sample in (1536, 3072, 4608):
        session.searched = sample
        session.processed = min(sample, 3072)
        times.searched(sample / 16_000)
    session.dues = [3072]
    assert waited(times, 1.0) == pytest.approx(1.0 - 3072 / 16_000)


def test_an_end_that_a_client_asks_for_is_waited_for_from_then() -> None:
    times, session = timed(Position(searched=1536, processed=1536))
    times.searched(0.1)
    times.message_came(5.0)
    session.dues = [1536]
    assert waited(times, 5.2) == pytest.approx(0.2)


def test_what_a_cut_makes_to_be_heard_again_does_not_begin_the_waiting_anew() -> None:
    times, session = timed(Position(searched=4608, processed=4608))
    times.searched(1.0)
    times.searched(1.5)  # the cursor went back; no more is heard than before
    session.dues = [4608]
    assert waited(times, 2.0) == pytest.approx(1.0)


def test_only_the_first_partial_of_a_segment_is_one() -> None:
    times, _ = timed(Position(received=16_000))
    before = value("dalston_worker_first_partial_seconds_count")
    for segment in ("seg_0000", "seg_0000", "seg_0001"):
        times.told(Partial(segment, "so", 0, 0.25, 1.0), 0.0)
    assert value("dalston_worker_first_partial_seconds_count") - before == 2


def test_for_a_recording_nobody_waits_so_that_it_is_not_measured() -> None:
    times, session = timed(Position(config=SessionConfig(recorded=True), dues=[16_000]))
    session.received = session.searched = 16_000
    times.searched(10.0)
    assert waited(times, 25.0) == 0.0
