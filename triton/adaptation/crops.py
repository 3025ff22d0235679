"""
Speech without texts -> the crops that a checkpoint is adapted on, in numpy.

A crop is what a live session asks a model for: an utterance, its beginning (cut anywhere, for a
partial), a little silence before and after it, by a good or a bad microphone, over a telephone, in
a room. Some hold no speech at all. Everything comes from one seed.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from dalston.triton.contract import SAMPLE_RATE

Floats = npt.NDArray[np.float32]

SHORTEST, LONGEST = 0.8, 23.5  # seconds; longer ones get the full window, which is not adapted
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
# Lengths of crops, seconds, and how often: short ones are most of what a live server is asked.
_LENGTHS = {
    (1, 4): 0.26,
    (2, 8): 0.28,
    (3, 11.5): 0.22,
    (5, 15.5): 0.16,
    (12, LONGEST): 0.08,
}


@dataclass(frozen=True)
class Recording:
    path: Path
    language: str  # "auto" where nobody said


@dataclass(frozen=True)
class Crop:
    audio: npt.NDArray[np.int16]
    name: str  # of its recording; "" for what holds no speech
    language: str

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


def recordings(folder: Path, languages: Sequence[str]) -> list[Recording]:
    """Those below `folder`. A file's language is the last part of its name, behind "_" or before
    the suffix, if that is one of `languages`: test_de.wav; or the name of a folder above it."""
    found = list[Recording]()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            marks = [*path.stem.split("_")[1:], *path.relative_to(folder).parent.parts]
            language = next((mark for mark in marks if mark in languages), "auto")
            found.append(Recording(path, language))
    return found


def read(path: Path, random: random.Random) -> Floats:
    """One channel of it, 16 kHz."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    one = audio[:, random.randrange(audio.shape[1])]
    return one if rate == SAMPLE_RATE else soxr.resample(one, rate, SAMPLE_RATE)


def quietest(audio: Floats, at: int, around: float = 0.4, width: float = 0.03) -> int:
    """The sample near `at` where there is least energy. around, width: seconds."""
    reach, step = int(around * SAMPLE_RATE), int(width * SAMPLE_RATE)
    first, last = max(0, at - reach), min(len(audio), at + reach)
    count = (last - first) // step
    if count < 2:
        return at
    energy = np.square(audio[first : first + count * step].reshape(count, step)).sum(1)
    return first + int(energy.argmin()) * step + step // 2


def _cut(audio: Floats, rng: random.Random) -> Floats:
    seconds = len(audio) / SAMPLE_RATE
    if seconds <= LONGEST and rng.random() < 0.25:
        return audio
    (bounds,) = rng.choices(list(_LENGTHS), list(_LENGTHS.values()))
    wanted = min(rng.uniform(*bounds), seconds)
    start = int(rng.uniform(0, seconds - wanted) * SAMPLE_RATE)
    end = start + int(wanted * SAMPLE_RATE)
    if rng.random() < 0.7:
        start = quietest(audio, start)
    if rng.random() < 0.7:
        end = quietest(audio, end)
    return audio[start : min(end, start + int(LONGEST * SAMPLE_RATE))]


def noise(kind: str, length: int, noises: np.random.Generator) -> Floats:
    """Of a root mean square of 1."""
    spectrum = np.fft.rfft(noises.standard_normal(max(length, 2)))
    hertz = np.maximum(np.arange(len(spectrum)) * SAMPLE_RATE / max(length, 2), 20)
    if kind == "hum":
        mains = 50 * np.arange(1, 9)
        phases = noises.uniform(0, 2 * np.pi, len(mains))
        time = np.arange(length) / SAMPLE_RATE
        made = (np.sin(2 * np.pi * mains[:, None] * time + phases[:, None]) / mains[:, None]).sum(0)
    else:
        steepness = {"white": 0, "pink": 0.5, "brown": 1}[kind]
        made = np.fft.irfft(spectrum / hertz**steepness, max(length, 2))[:length]
    return (made / (np.sqrt(np.square(made).mean()) + 1e-9)).astype(np.float32)


def _telephone(audio: Floats) -> Floats:
    """Through 8 kHz and mu-law (ITU-T G.711)."""
    narrow = np.clip(soxr.resample(audio, SAMPLE_RATE, 8000), -1, 1)
    levels = np.rint(127 * np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256)) / 127
    heard = np.sign(levels) * (256 ** np.abs(levels) - 1) / 255
    return soxr.resample(heard, 8000, SAMPLE_RATE).astype(np.float32)


def _room(audio: Floats, rng: random.Random, noises: np.random.Generator) -> Floats:
    """With the echo of a room: noise that decays by 60 dB in 0.2 to 0.7 s."""
    length = int(rng.uniform(0.2, 0.7) * SAMPLE_RATE)
    echo = noises.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    echo *= rng.uniform(0.3, 1.2) / np.sqrt(np.square(echo).sum())
    echo[0] = 1
    size = len(audio) + length
    made = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(echo, size), size)
    return made[: len(audio)].astype(np.float32)


def _coloured(audio: Floats, rng: random.Random, noises: np.random.Generator) -> Floats:
    before, after = (int(rng.choice((0, rng.uniform(0, 0.6))) * SAMPLE_RATE) for _ in range(2))
    audio = np.pad(audio, (before, after))
    if rng.random() < 0.15:
        audio = _room(audio, rng, noises)
    power = float(np.square(audio).mean()) + 1e-9
    if rng.random() < 0.3:
        level = power / 10 ** (rng.uniform(10, 35) / 10)
        kind = rng.choice(("white", "pink", "pink", "brown", "hum"))
        audio = audio + noise(kind, len(audio), noises) * np.float32(np.sqrt(level))
    audio = audio * 10 ** (rng.uniform(-14, 5) / 20)
    return _telephone(audio) if rng.random() < 0.2 else audio


def _nothing(rng: random.Random, noises: np.random.Generator) -> Floats:
    length = int(rng.uniform(SHORTEST, 8) * SAMPLE_RATE)
    loudness = np.float32(10 ** (rng.uniform(-75, -18) / 20))
    return loudness * noise(rng.choice(("white", "pink", "brown", "hum")), length, noises)


def crops(sources: Sequence[Recording], count: int, seed: int) -> Iterator[Crop]:
    """`count` of them: rounds over the recordings, one in twelve without speech."""
    rng, noises = random.Random(seed), np.random.default_rng(seed)
    order = list[Recording]()
    made = 0
    while made < count:
        order = order or rng.sample(sources, len(sources))
        if rng.random() < 1 / 12:
            name, language, audio = "", "auto", _nothing(rng, noises)
        else:
            source = order.pop()
            name, language = source.path.name, source.language
            audio = _cut(read(source.path, rng), rng)
            if len(audio) < 6 * SAMPLE_RATE and order and rng.random() < 0.1:
                # Two people, or one after a pause.
                pause = np.zeros(int(rng.uniform(0.1, 0.6) * SAMPLE_RATE), np.float32)
                other = next((one for one in order if one.language == language), None)
                if other:
                    audio = np.concatenate([audio, pause, _cut(read(other.path, rng), rng)])
            audio = _coloured(audio, rng, noises)
        audio = audio[: int(LONGEST * SAMPLE_RATE)]
        if len(audio) < SHORTEST * SAMPLE_RATE:
            continue
        made += 1
        pcm = np.clip(audio * 32768, -32768, 32767).astype(np.int16)
        yield Crop(pcm, name, language)
