"""
Where the milliseconds of a session's finals go, by stage.

    buffering       the first sample of a hop waits for the last, and for the hop before
    vad             the hop's speech probabilities, asked and answered
    queue           the final's request: on the wire, and waiting for others in Triton
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


class StageTimes:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._recorded = bool(
            session.config.recorded
        )  # so that nobody waits: it is not in the metrics
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._arrivals: deque[tuple[int, float]] = deque()  # samples received by then, clock
        self._searched: deque[tuple[int, float]] = deque()  # samples searched for speech, clock
        self._shown = ""  # segment of the last partial

    def add(self, stage: str, seconds: float) -> None:
        self._sums[stage] += seconds
        self._counts[stage] += 1
        if not self._recorded:
            metrics.stage_took(stage, seconds)

    def add_all(self, stages: Mapping[str, float]) -> None:
        for stage, seconds in stages.items():
            self.add(stage, seconds)

    def audio_came(self, now: float) -> None:
        self._arrivals.append((self._session.received, now))

    def hop_left(self, now: float) -> None:
        """The hop that begins where the session is decided goes to the VAD."""
        while self._arrivals and self._arrivals[0][0] <= self._session.decided:
            self._arrivals.popleft()
        if self._arrivals:
            self.add("buffering", now - self._arrivals[0][1])

    def message_came(self, now: float) -> None:
        """A client's message may end an utterance where the session is."""
        if self._searched and self._searched[-1][0] == self._session.searched:
            self._searched.pop()
        self.searched(now)

    def searched(self, now: float) -> None:
        """More of the session may have been searched for speech."""
        session = self._session
        while self._searched and self._searched[0][0] < session.processed:
            self._searched.popleft()
        if not self._searched or self._searched[-1][0] < session.searched:
            self._searched.append((session.searched, now))

    def told(self, message: ServerMessage, now: float) -> None:
        """The client is told this; what people wait for is measured."""
        session = self._session
        if self._recorded:
            return
        if isinstance(message, Final):
            due = session.final_due()
            known = next((clock for heard, clock in self._searched if heard >= due), now)
            metrics.FINAL.observe(now - known)
        elif isinstance(message, Partial) and message.segment_id != self._shown:
            self._shown = message.segment_id
            metrics.FIRST_PARTIAL.observe(session.received / SAMPLE_RATE - message.start)

    def means_ms(self) -> dict[str, float]:
        """The mean of each stage, in milliseconds."""
        return {
            stage: round(1000 * total / self._counts[stage], 2)
            for stage, total in self._sums.items()
        }
