"""
Whether adapted norms do what they are for, and which of several do it best.

Asked of speech that nobody trained on, and decoded as a live server does, greedily and without
times: how far is what the adapted checkpoint says in a right-sized window from what the untouched
one says in the full window? Beginnings of recordings, cut anywhere, stand for partials. Where
there are texts, the error rates of both decide; where there are none, the untouched checkpoint's
own words are the reference.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt

from dalston.triton.contract import LONGEST_AUDIO, MARGIN, SAMPLE_RATE, SPACELESS, WINDOWS
from dalston.triton.features import HOP, log_mel
from dalston.triton.vocabulary import Vocabulary
from dalston.triton.whisper import TOKENS_EXTRA, TOKENS_LIMIT, TOKENS_PER_SECOND

FULL = WINDOWS[-1]
RUNAWAY = 1.3  # times the words of the reference, and two: the sentence was said twice
# Bounds of a proof, shares of the reference's words.
LARGEST_LOSS = 0.003  # of words in error beyond those of the full window
# Beginnings end in the middle of a word, of which every decoding makes another: base and tiny.en,
# which are good, differ in 15 and 21 % of the words; the untouched base in most.
LARGEST_DIFFERENCE = 0.25

Pcm = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Sample:
    audio: Pcm
    language: str
    text: str | None = None  # by people


@dataclass(frozen=True)
class Errors:
    words: int
    wrong: int
    runaways: int

    @property
    def rate(self) -> float:
        return self.wrong / max(1, self.words)

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % of {self.words} words, {self.runaways} runaways"


def pieces(text: str, language: str) -> list[str]:
    """Words without case and punctuation; characters where a language has no words."""
    plain = re.sub(r"[^\w\s]", "", text.lower().replace("-", " "))
    return list("".join(plain.split())) if language in (*SPACELESS, "ko") else plain.split()


def distance(reference: Sequence[str], said: Sequence[str]) -> int:
    """Levenshtein's, in words."""
    row = list(range(len(said) + 1))
    for at, wanted in enumerate(reference, 1):
        before, row[0] = row[0], at
        for place, one in enumerate(said, 1):
            before, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, before + (wanted != one)),
            )
    return row[-1]


def errors(references: Sequence[str], said: Sequence[str], samples: Sequence[Sample]) -> Errors:
    words = wrong = runaways = 0
    for reference, text, sample in zip(references, said, samples, strict=True):
        wanted, heard = pieces(reference, sample.language), pieces(text, sample.language)
        words += len(wanted)
        wrong += distance(wanted, heard)
        runaways += len(heard) > RUNAWAY * len(wanted) + 2
    return Errors(words, wrong, runaways)


def beginnings(samples: Sequence[Sample], seed: int = 9) -> list[Sample]:
    """Of each sample a part of 1.2 to 7.5 s, cut anywhere, its text unknown."""
    rng, made = random.Random(seed), list[Sample]()
    for sample in samples:
        wanted = int(rng.uniform(*rng.choice(((1.2, 3.6), (3, 7.5)))) * SAMPLE_RATE)
        if wanted < len(sample.audio):
            made.append(Sample(sample.audio[:wanted], sample.language))
    return made


class Listener:
    """A CTranslate2 folder, asked as a live server asks."""

    def __init__(self, checkpoint: Path, threads: int = 1):
        self._vocabulary = Vocabulary.load(checkpoint)
        self._model: Any = ctranslate2.models.Whisper(
            str(checkpoint), compute_type="int8_float32", intra_threads=threads
        )

    def say(self, sample: Sample, full: bool) -> str:
        seconds = len(sample.audio) / SAMPLE_RATE
        window = next((w for w in WINDOWS if not full and w >= seconds + MARGIN), FULL)
        mel = log_mel(sample.audio[:LONGEST_AUDIO], window * SAMPLE_RATE // HOP, self._model.n_mels)
        most = min(TOKENS_LIMIT, TOKENS_EXTRA + int(TOKENS_PER_SECOND * seconds))
        (result,) = self._model.generate(
            self._model.encode(ctranslate2.StorageView.from_array(mel[None])),
            [self._vocabulary.prompt(sample.language, "transcribe")],
            beam_size=1,
            max_length=2 * most,
        )
        return self._vocabulary.decode(self._vocabulary.spoken(result.sequences_ids[0]))[0]


@dataclass(frozen=True)
class Reference:
    """What the untouched checkpoint makes of the samples, computed once."""

    samples: list[Sample]
    cut: list[Sample]
    full: list[str]  # of samples
    full_cut: list[str]

    @classmethod
    def of(
        cls, checkpoint: Path, samples: list[Sample], tell: Callable[[str], None], threads: int = 1
    ) -> "Reference":
        stock, cut = Listener(checkpoint, threads), beginnings(samples)
        tell(f"the untouched checkpoint hears {len(samples)} recordings and {len(cut)} beginnings")
        return cls(
            samples,
            cut,
            [stock.say(one, True) for one in samples],
            [stock.say(one, True) for one in cut],
        )


@dataclass(frozen=True)
class Proof:
    """Of one set of norms."""

    short: Errors  # against the texts, or the untouched checkpoint's
    full: Errors  # the same, of the untouched checkpoint in full windows
    cut: Errors  # partials, against the untouched checkpoint's words

    def __str__(self) -> str:
        return (
            f"right-sized {self.short}; full, untouched {self.full}; "
            f"beginnings differ by {self.cut}"
        )

    def objections(self) -> list[str]:
        """Why these norms are not to be used; none: they are."""
        found = list[str]()
        if self.short.rate > self.full.rate + LARGEST_LOSS:
            found.append(f"in error: {self.short} in right-sized windows, {self.full} in full ones")
        if self.short.runaways > self.full.runaways:
            found.append(f"{self.short.runaways} sentences are said twice")
        if self.cut.rate > LARGEST_DIFFERENCE:
            found.append(f"beginnings differ from the full window's by {self.cut}")
        return found

    @property
    def badness(self) -> float:
        """What to choose by: finals, and partials at a third."""
        return self.short.rate + self.cut.rate / 3 + (self.short.runaways + self.cut.runaways) / 100


def prove(adapted: Path, reference: Reference, threads: int = 1) -> Proof:
    listener, samples = Listener(adapted, threads), reference.samples
    texts = [
        said if one.text is None else one.text
        for one, said in zip(samples, reference.full, strict=True)
    ]
    return Proof(
        short=errors(texts, [listener.say(one, False) for one in samples], samples),
        full=errors(texts, reference.full, samples),
        cut=errors(
            reference.full_cut, [listener.say(one, False) for one in reference.cut], reference.cut
        ),
    )


def between(
    stock: Mapping[str, npt.NDArray[np.float32]],
    trained: Mapping[str, npt.NDArray[np.float32]],
    share: float,
) -> dict[str, npt.NDArray[np.float32]]:
    """So much of the way from the one to the other."""
    return {name: stock[name] + share * (value - stock[name]) for name, value in trained.items()}
