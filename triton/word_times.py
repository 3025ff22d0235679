"""
When words are spoken: from an alignment of tokens with frames to words with a start and an end.

The alignment is Whisper's own: dynamic time warping over the attention of its alignment heads (the
timing.py of openai-whisper). It knows where one word follows another, and shares out the silence
between them by chance; where the audio is silent, words are moved to its edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dalston.triton.contract import SAMPLE_RATE
from dalston.triton.greedy import FRAMES_PER_SECOND

# A pause is at least so long; what is shorter may be the closure of a plosive. A sound between two
# pauses that is shorter is no word: lips and tongue click.
PAUSE_S, CLICK_S = 0.1, 0.1
# Alignments are wrong by up to so much, so a pause so near belongs between two words. Before the
# first word and after the last the alignment is worst.
NEAR_S, NEAR_EDGE_S = 0.25, 1.0
# No word is made shorter than this.
SHORTEST_S = 0.05
FRAME_S = 0.01
# Silence is at most so much above the quietest twentieth or so much below the loudest, but always
# well below speech: where noise is nearly as loud, no pause is known.
ABOVE_DB, BELOW_DB, CLEARLY_DB = 10.0, 35.0, 12.0


@dataclass(frozen=True)
class Word:
    text: str
    start: float  # seconds from the start of the row's audio
    end: float
    probability: float


def token_starts(alignment: Any, duration: float) -> list[float]:
    """Seconds at which each token begins; the last is where the end token does.

    alignment: CTranslate2's, of one row. duration: seconds of audio.
    """
    steps, times = np.array(alignment.alignments, np.int64).T
    begins = np.diff(steps, prepend=-1) > 0
    return np.minimum(times[begins] / FRAMES_PER_SECOND, duration).tolist()


def pauses(audio: npt.NDArray[np.int16]) -> list[tuple[float, float]]:
    """Where nobody speaks for PAUSE_S and longer, by loudness: (start, end) in seconds."""
    size = round(FRAME_S * SAMPLE_RATE)
    frames = audio[: len(audio) // size * size].reshape(-1, size).astype(np.float32)
    if not len(frames):
        return []
    frames -= frames.mean()  # a constant is no sound
    level: npt.NDArray[np.float64] = 10 * np.log10((frames**2).mean(1) + 1)
    quiet, loud = float(np.percentile(level, 5)), float(np.percentile(level, 95))
    silent = level <= min(max(quiet + ABOVE_DB, loud - BELOW_DB), loud - CLEARLY_DB)
    edges = np.flatnonzero(np.diff(silent.astype(np.int8), prepend=0, append=0))
    found = list[tuple[float, float]]()
    for first, last in edges.reshape(-1, 2).tolist():
        if last - first < round(PAUSE_S / FRAME_S):
            continue
        if found and first * FRAME_S - found[-1][1] < CLICK_S:
            found[-1] = (found[-1][0], last * FRAME_S)
        else:
            found.append((first * FRAME_S, last * FRAME_S))
    return found


def moved_to_sound(
    words: Sequence[Word], silent: Sequence[tuple[float, float]], duration: float
) -> list[Word]:
    """The same words, none of which begins or ends in a pause that lies between two of them.

    A pause belongs to the nearest place between two words, or before the first or after the last,
    if that is near enough. duration: seconds of audio, all of `silent` within.
    """
    moved = list(words)
    if not moved:
        return moved
    for start, end in silent:
        places = [moved[0].start, *(word.start for word in moved[1:]), moved[-1].end]
        if start <= FRAME_S:
            place, near = 0, NEAR_EDGE_S
        elif end >= duration - 2 * FRAME_S:
            place, near = len(moved), NEAR_EDGE_S
        else:
            away = [max(start - at, at - end, 0.0) for at in places]
            place, near = int(np.argmin(away)), NEAR_S
        if max(start - places[place], places[place] - end, 0.0) > near:
            continue
        before, after = moved[max(0, place - 1) : place], moved[place : place + 1]
        ends = before and start - before[0].start >= SHORTEST_S
        begins = after and after[0].end - end >= SHORTEST_S
        if (ends or not before) and (begins or not after):
            moved[max(0, place - 1) : place + 1] = [
                *(replace(word, end=start) for word in before),
                *(replace(word, start=end) for word in after),
            ]
    return moved


def shortened(words: Sequence[Word], silent: Sequence[tuple[float, float]] = ()) -> list[Word]:
    """The first word takes the silence before it and the last the silence after it: where no pause
    says where they begin and end, neither may be longer than twice the usual word (the rule of
    openai-whisper for sentence boundaries)."""
    words = list(words)
    if len(words) < 2:
        return words
    longest = 2 * min(0.7, float(np.median([word.end - word.start for word in words])))
    first, last = words[0], words[-1]
    if first.end - first.start > longest and all(end != first.start for _, end in silent):
        words[0] = replace(first, start=first.end - longest)
    if last.end - last.start > longest and all(start != last.end for start, _ in silent):
        words[-1] = replace(last, end=last.start + longest)
    return words
