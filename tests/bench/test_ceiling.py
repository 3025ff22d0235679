"""
What of a recorded run is replayed, and in which batches.
"""

from asked import Asked
from ceiling import BATCH, rows

from dalston.orchestrator.transcription.model_requests import SpeechRequest, TranscriptRequest
from dalston.triton.contract import SAMPLE_RATE, window_seconds


def transcript(seconds: float, words: bool = False) -> TranscriptRequest:
    audio = bytes(2 * int(seconds * SAMPLE_RATE))
    kind = "final" if words else "partial"
    return TranscriptRequest(0, kind, audio, "en", "fast", words=words)


def test_only_what_was_asked_while_every_caller_was_there_is_replayed() -> None:
    speech = [
        (0.0, SpeechRequest("probe.1", b"")),
        *((10.0 + at, SpeechRequest("s.1.0", bytes(2))) for at in range(20)),
    ]
    transcripts = [(10.0 + at, transcript(1.0), False) for at in range(20)]
    kept = Asked(speech, transcripts).between(3.0, 15.0)
    assert [at for at, _ in kept.speech] == [10.0 + at for at in range(3, 15)]
    assert [at for at, _, _ in kept.transcripts] == [10.0 + at for at in range(3, 15)]


def test_a_batch_holds_rows_of_one_window_and_none_is_forgotten() -> None:
    asked = [transcript(1 + number % 7, words=number % 3 == 0) for number in range(50)]
    batches = rows([(0.0, request, False) for request in asked])
    assert sum(map(len, batches)) == len(asked)
    for batch in batches:
        assert len(batch) <= BATCH
        assert len({(window_seconds(len(row.audio)), row.words) for row in batch}) == 1
