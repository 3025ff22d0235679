"""
All that was said in a recording.
"""

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass

from dalston.gateway.protocols.vendors import join
from dalston.orchestrator.protocol.messages import (
    Final,
    SessionBegin,
    SessionConfig,
    SessionEnd,
    Word,
)


@dataclass(frozen=True)
class Transcript:
    finals: Sequence[Final]
    duration_s: float  # of the audio
    config: SessionConfig

    @property
    def text(self) -> str:
        written = "en" if self.config.task == "translate" else self.language
        return join([final.text for final in self.finals], written)

    @property
    def words(self) -> list[Word]:
        """If their times were asked for."""
        return [word for final in self.finals for word in final.words or ()]

    @property
    def language(self) -> str:
        """The one that most was said in; nothing said counts as English."""
        return max(self._seconds, key=lambda code: self._seconds[code], default="en")

    @property
    def language_share(self) -> float:
        """Of what was said, how much was said in that language."""
        seconds = self._seconds
        return seconds[self.language] / sum(seconds.values()) if sum(seconds.values()) else 1.0

    @property
    def confidence(self) -> float:
        """The mean over the time of all finals."""
        seconds = [final.end - final.start for final in self.finals]
        told = [final.confidence for final in self.finals]
        weighed = sum(s * c for s, c in zip(seconds, told, strict=True))
        return round(weighed / sum(seconds), 4) if sum(seconds) else 0.0

    @property
    def _seconds(self) -> dict[str, float]:
        seconds = dict[str, float]()
        for final in self.finals:
            seconds[final.language] = seconds.get(final.language, 0.0) + final.end - final.start
        return seconds


async def whole(spoken: AsyncIterable[SessionBegin | Final | SessionEnd]) -> Transcript:
    finals, duration_s, config = list[Final](), 0.0, SessionConfig()
    async for message in spoken:
        match message:
            case SessionBegin():
                config = message.config
            case Final():
                finals.append(message)
            case SessionEnd():
                duration_s = message.total_duration
    return Transcript(finals, duration_s, config)
