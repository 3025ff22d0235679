"""
Hypotheses -> finals, segments, the transcript of the session. Without I/O.

A hypothesis knows only the audio it was given; here its words move to session time, and the two
sides of a cut utterance are joined so that no word is lost or said twice.
"""

import difflib
import math
import re
from collections.abc import Sequence

from dalston.orchestrator.protocol.messages import Segment, Word
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
        words.append(Word(word.text, round(start, 3), round(stop, 3), round(word.probability, 3)))
    return words


def text_of(words: Sequence[Word], language: str) -> str:
    return ("" if language in SPACELESS else " ").join(word.word for word in words)


def confidence(hypothesis: Hypothesis) -> float:
    """The geometric mean of the probabilities of its tokens."""
    return round(math.exp(min(0.0, hypothesis.average_logprob)), 3)


def before_cut(words: list[Word], cut: int) -> list[Word]:
    """The words of the first side: those whose middle lies before the cut (samples)."""
    return [word for word in words if (word.start + word.end) / 2 < cut / SAMPLE_RATE]


def overlap(words: list[Word], cut: int) -> list[Word]:
    """The last words of the first side, by which the second is joined to it."""
    return [word for word in words if word.end > cut / SAMPLE_RATE - JOIN_WINDOW]


def _letters(word: Word) -> str:
    return re.sub(r"\W", "", word.word).lower()


def after_cut(words: list[Word], said: list[Word], cut: int) -> list[Word]:
    """The words of the second side, whose audio begins a little before the cut.

    `said`: the last words of the first side. What they repeat is dropped; without a match the
    cut decides, word by word.
    """
    # The longest end of what was said that stands near the beginning of what is said now. Words
    # long after the cut may well be a true repetition.
    reach = sum((word.start + word.end) / 2 < cut / SAMPLE_RATE + 0.3 for word in words)
    old, new = [_letters(word) for word in said], [_letters(word) for word in words]
    for length in range(min(len(old), reach), 0, -1):
        for first in range(reach - length, -1, -1):
            if new[first : first + length] == old[-length:]:
                return words[first + length :]
    return [word for word in words if (word.start + word.end) / 2 >= cut / SAMPLE_RATE]


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
