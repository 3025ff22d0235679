"""
What a run asked of the models, and when: written by recorder.py, replayed by ceiling.py.
"""

from dataclasses import dataclass

from dalston.orchestrator.transcription.model_requests import SpeechRequest, TranscriptRequest


@dataclass(frozen=True)
class Asked:
    """In the order of time; each with the clock's seconds."""

    speech: list[tuple[float, SpeechRequest]]
    transcripts: list[tuple[float, TranscriptRequest, bool]]  # and whether in a full window

    def between(self, first_s: float, last_s: float) -> "Asked":
        """What was asked so many seconds after the first request for a session's audio."""
        began = next(at for at, request in self.speech if not request.sequence.startswith("probe"))
        first, last = began + first_s, began + last_s
        return Asked(
            [asked for asked in self.speech if first <= asked[0] < last],
            [asked for asked in self.transcripts if first <= asked[0] < last],
        )
