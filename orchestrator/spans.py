"""
Where the milliseconds of a session's finals go, by stage.

    buffering       the first sample of a hop waits for the last, and for the hop before
    vad             the hop's speech probabilities, asked and answered
    queue           the final's request: on the wire, and behind others in Triton
    features, encode, decode, align      in the model
    assembly        the answer becomes messages
    serialisation   the final becomes bytes
"""

from collections import defaultdict, deque
from collections.abc import Mapping


class Spans:
    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._arrivals: deque[tuple[int, float]] = deque()  # samples received by then, clock

    def add(self, stage: str, seconds: float) -> None:
        self._sums[stage] += seconds
        self._counts[stage] += 1

    def add_all(self, stages: Mapping[str, float]) -> None:
        for stage, seconds in stages.items():
            self.add(stage, seconds)

    def arrived(self, received: int, now: float) -> None:
        """So many samples of the session are there."""
        self._arrivals.append((received, now))

    def left(self, sample: int, now: float) -> None:
        """The hop that begins with this sample goes to the VAD."""
        while self._arrivals and self._arrivals[0][0] <= sample:
            self._arrivals.popleft()
        if self._arrivals:
            self.add("buffering", now - self._arrivals[0][1])

    def means_ms(self) -> dict[str, float]:
        """Of each stage, over all that was added."""
        return {
            stage: round(1000 * total / self._counts[stage], 2)
            for stage, total in self._sums.items()
        }
