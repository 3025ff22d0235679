"""
Hypotheses -> finals, segments, the transcript of the session. Without I/O.

A hypothesis knows only the audio it was given; here its words move to session time, and the two
sides of a cut utterance are joined so that no word is lost or said twice.
"""

import difflib
import math
from collections.abc import Sequence

from dalston.orchestrator.protocol.messages import Segment, Word
from dalston.orchestrator.transcription import joins
from dalston.orchestrator.transcription.agreement import spoken
from dalston.orchestrator.transcription.model_requests import Hypothesis
from dalston.triton.contract import SAMPLE_RATE, SPACELESS

# Dynamic time warping gives the first word the silence before it. The endpointer knows better
# where speech began, to about this.
_ONSET_SLACK = 0.1  # seconds
# A cut is joined over the words that end so shortly before it.
JOIN_WINDOW = 1.5  # seconds


def seconds(samples: int) -> float:
    return round(samples / SAMPLE_RATE, 3)


def session_words(hypothesis: Hypothesis, audio_start: int, onset: int, end: int) -> list[Word]:
    """The words in session time, in order and inside [audio_start, end] (samples)."""
    offset, last = audio_start / SAMPLE_RATE, end / SAMPLE_RATE
    floor = max(offset, onset / SAMPLE_RATE - _ONSET_SLACK)
    words = list[Word]()
    for word in hypothesis.words:
        start = min(max(offset + word.start, floor), last)
        stop = min(max(offset + word.end, start), last)
        floor = start
        words.append(
            Word(word.text, round(start, 3), round(stop, 3), _probability(word.probability))
        )
    return words


def _probability(value: float) -> float:
    """What a client is told of it: of one that is no number, of half precision perhaps, 0."""
    return round(min(value, 1.0), 3) if value >= 0 else 0.0


def text_of(words: Sequence[Word], language: str) -> str:
    return ("" if language in SPACELESS else " ").join(word.word for word in words)


def confidence(hypothesis: Hypothesis) -> float:
    """The geometric mean of the probabilities of its tokens."""
    average = hypothesis.average_logprob
    return _probability(math.exp(min(average, 0.0)))


def before_cut(words: list[Word], cut: int) -> list[Word]:
    """The words that the first side says: those whose middle lies before the cut (samples)."""
    last = seconds(cut)
    said = words[: joins.told(words, last)]
    return [Word(w.word, min(w.start, last), min(w.end, last), w.confidence) for w in said]


def overlap(words: list[Word], cut: int) -> list[Word]:
    """What the first side heard around the cut, by which the second is joined to it: its last
    words, and those after the cut that it leaves to the second."""
    return [word for word in words if word.end > cut / SAMPLE_RATE - JOIN_WINDOW]


def after_cut(words: list[Word], heard: list[Word], cut: int) -> list[Word]:
    """The words of the second side, whose audio begins a little before the cut, less those that
    the first side, which `heard` these around the cut, has said."""
    first = seconds(cut)
    rest = words[joins.repeated(heard, words, first) :]
    return [Word(w.word, max(w.start, first), max(w.end, first), w.confidence) for w in rest]


def changed_words(stable: str, final: str, cut: bool) -> tuple[int, int]:
    """How many words partials had declared stable, and how many of them the final has not. Other
    capitals or marks are no other word."""
    shown, said = spoken(stable), spoken(final)
    if cut:  # what was shown of the audio after the cut is said by the next segment
        shown = shown[: len(said)]
    matcher = difflib.SequenceMatcher(None, shown, said, autojunk=False)
    kept = sum(block.size for block in matcher.get_matching_blocks())
    return len(shown), len(shown) - kept


def transcript(segments: Sequence[Segment]) -> str:
    return " ".join(segment.text for segment in segments)
