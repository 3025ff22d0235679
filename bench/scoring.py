"""
How near a transcript is to what was said: words wrong, sentences said twice, words lost at the
edges, words in the wrong place in time.

Texts are compared as Whisper's authors compare them (their normalisers, whisper-normalizer), so
case, punctuation, contractions and numbers do not count. Japanese, Chinese and Korean are counted
by the character: *words* below are characters then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import jiwer
import numpy as np
from recordings import Sentence
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

BY_CHARACTER = frozenset({"ja", "ko", "yue", "zh"})
# Nobody says so many words twice in a row by chance; so many characters are about as much.
RUN_WORDS, RUN_CHARACTERS = 4, 8
# More words than this many for each that was said, and two, cannot all have been said.
LONGER, AND_WORDS = 1.3, 2
RESAMPLES, SEED = 10_000, 1


@dataclass(frozen=True)
class Score:
    """Of one transcript against what was said."""

    words: int  # that were said
    errors: int  # wrong, missing, or too many
    twice: bool  # something was written twice that was said once
    first_lost: bool
    last_lost: bool


@dataclass(frozen=True)
class Word:
    text: str
    start: float  # seconds
    end: float


@cache
def _normaliser(language: str) -> EnglishTextNormalizer | BasicTextNormalizer:
    if language == "en":
        return EnglishTextNormalizer()
    return BasicTextNormalizer(split_letters=language in BY_CHARACTER)


def words(text: str, language: str = "en") -> list[str]:
    """What counts of a text. language: ISO 639, "mul" for several."""
    return _normaliser(language)(text).split()


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Words wrong, missing, or too many: the fewest that make one of the other (Levenshtein)."""
    compared = jiwer.process_words(" ".join(said), " ".join(heard))
    return compared.substitutions + compared.deletions + compared.insertions


def wer(pairs: Sequence[tuple[str, str]], language: str = "en") -> float:
    """Of (said, heard) texts, all words together."""
    both = [(words(said, language), words(heard, language)) for said, heard in pairs]
    return sum(errors(*pair) for pair in both) / sum(len(said) for said, _ in both)


def score(said: str | None, heard: str, language: str = "en") -> Score:
    """said: None where nobody wrote it down; then only what is written twice is counted."""
    found, run = words(heard, language), RUN_WORDS
    if language in BY_CHARACTER:
        run = RUN_CHARACTERS
    if said is None:
        return Score(0, 0, repeats(found, run) > 0, False, False)
    true = words(said, language)
    kept = _kept(true, found)
    longer = len(found) > LONGER * len(true) + AND_WORDS
    return Score(
        words=len(true),
        errors=errors(true, found),
        twice=longer or repeats(found, run) > repeats(true, run),
        first_lost=bool(true) and kept[0] == _LOST,
        last_lost=bool(true) and kept[-1] == _LOST,
    )


def repeats(found: Sequence[str], run: int) -> int:
    """How often `run` words or more stand there twice, one right after the other."""
    count, at = 0, 0
    while at + 2 * run <= len(found):
        lengths = range(run, (len(found) - at) // 2 + 1)
        same = (n for n in lengths if found[at : at + n] == found[at + n : at + 2 * n])
        if length := next(same, 0):
            count, at = count + 1, at + length
        else:
            at += 1
    return count


_LOST, _WRONG = -2, -1


def _kept(said: Sequence[str], heard: Sequence[str]) -> list[int]:
    """For each word said the index of the same word among those heard, or _WRONG, or _LOST."""
    kept = [_LOST] * len(said)
    (chunks,) = jiwer.process_words(" ".join(said), " ".join(heard)).alignments
    for chunk in chunks:
        for index in range(chunk.ref_start_idx, chunk.ref_end_idx):
            if chunk.type == "equal":
                kept[index] = chunk.hyp_start_idx + index - chunk.ref_start_idx
            elif chunk.type == "substitute":
                kept[index] = _WRONG
    return kept


def time_errors(
    sentences: Sequence[Sentence], heard: Sequence[Word], language: str = "en"
) -> list[float]:
    """Seconds by which the first word of each sentence begins too late, and its last word ends too
    late; negative: too early. Words that were not understood do not count."""
    places, found = list[int](), list[str]()  # of which word heard; a word may be two: "don't"
    for index, word in enumerate(heard):
        parts = words(word.text, language)
        places += [index] * len(parts)
        found += parts
    each = [words(sentence.text, language) for sentence in sentences]
    kept = _kept([word for said in each for word in said], found)
    wrong, first = list[float](), 0
    for sentence, said in zip(sentences, each, strict=True):
        last = first + len(said) - 1
        if said and kept[first] >= 0:
            wrong.append(heard[places[kept[first]]].start - sentence.start)
        if said and kept[last] >= 0:
            wrong.append(heard[places[kept[last]]].end - sentence.end)
        first = last + 1
    return wrong


def interval(
    ours: Sequence[int], theirs: Sequence[int], said: Sequence[int]
) -> tuple[float, float]:
    """In which the difference of two word error rates lies, in 95 of 100: errors of both and words
    said, one of each for every utterance. Utterances are drawn anew, with replacement (Bisani and
    Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation")."""
    difference, counts = np.subtract(ours, theirs), np.array(said)
    rng = np.random.default_rng(SEED)
    drawn = (rng.random((RESAMPLES, len(counts))) * len(counts)).astype(np.int64)
    rates = difference[drawn].sum(1) / np.maximum(1, counts[drawn].sum(1))
    ranked: list[float] = sorted(rates.tolist())
    return ranked[RESAMPLES // 40], ranked[-1 - RESAMPLES // 40]
