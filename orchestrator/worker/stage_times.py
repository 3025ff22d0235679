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

from dalston.orchestrator.protocol.messages import Final, Partial, ServerMessage
from dalston.orchestrator.transcription.session import Session
from dalston.orchestrator.worker import metrics
from dalston.triton.contract import SAMPLE_RATE


class Spans:
    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._arrivals: deque[tuple[int, float]] = deque()  # samples received by then, clock
        self._heard: deque[tuple[int, float]] = deque()  # samples searched for speech, clock
        self._shown = ""  # segment of the last partial

    def add(self, stage: str, seconds: float) -> None:
        self._sums[stage] += seconds
        self._counts[stage] += 1
        metrics.stage_took(stage, seconds)

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

    def heard(self, session: Session, now: float, message: bool = False) -> None:
        """More of the session was searched for speech, or a client's message may end it here."""
        while self._heard and self._heard[0][0] < session.processed:
            self._heard.popleft()
        if message and self._heard and self._heard[-1][0] == session.heard:
            self._heard.pop()
        if not self._heard or self._heard[-1][0] < session.heard:
            self._heard.append((session.heard, now))

    def told(self, message: ServerMessage, session: Session, now: float) -> None:
        """The client is told this; what people wait for is measured."""
        if isinstance(message, Final):
            due = session.final_due()
            known = next((clock for heard, clock in self._heard if heard >= due), now)
            metrics.FINAL.observe(now - known)
        elif isinstance(message, Partial) and message.segment_id != self._shown:
            self._shown = message.segment_id
            metrics.FIRST_PARTIAL.observe(session.received / SAMPLE_RATE - message.start)

    def means_ms(self) -> dict[str, float]:
        """Of each stage, over all that was added."""
        return {
            stage: round(1000 * total / self._counts[stage], 2)
            for stage, total in self._sums.items()
        }
