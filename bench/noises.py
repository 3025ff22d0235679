"""
Sounds without a word: what a server must make no text of. All are made here with a fixed seed but
one, the rooms of the corpus while nobody speaks in them.

Levels are those of a microphone: what goes on all the time is 60 to 20 dB below full scale, in
steps of five seconds; what comes and goes is 20 dB below at its loudest.
"""

from collections.abc import Callable
from pathlib import Path

import corpus
import numpy as np
import numpy.typing as npt
from recordings import Pcm

from dalston.triton.contract import SAMPLE_RATE

SEED = 12
QUIETEST_DB, LOUDEST_DB, STEP_S = -60.0, -20.0, 5.0

Samples = npt.NDArray[np.float64]


def _time(n: int) -> Samples:
    return np.arange(n) / SAMPLE_RATE


def _white(n: int, rng: np.random.Generator) -> Samples:
    return rng.standard_normal(n)


def _pink(n: int, rng: np.random.Generator) -> Samples:
    """As much power in each octave."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
    return np.fft.irfft(spectrum, n)


def _hum(n: int, rng: np.random.Generator) -> Samples:
    """Of the mains, with its overtones and a little noise."""
    t = _time(n)
    waves = sum(np.sin(2 * np.pi * 50 * k * t + k) / k for k in (1, 2, 3, 4, 6, 8, 10))
    return np.asarray(waves) + 0.03 * rng.standard_normal(n)


def _tones(n: int, rng: np.random.Generator) -> Samples:
    """Of telephones: ringing, engaged, and keys pressed (ITU-T E.180, Q.23)."""
    t, found = _time(n), np.zeros(n)
    rows, columns = (697, 770, 852, 941), (1209, 1336, 1477)
    at = 0
    while at < n:
        kind, last = int(3 * rng.random()), min(n, at + SAMPLE_RATE * 2)
        if kind == 0:
            found[at:last] = np.sin(2 * np.pi * 425 * t[at:last]) * (t[at:last] % 5 < 1)
        elif kind == 1:
            found[at:last] = np.sin(2 * np.pi * 425 * t[at:last]) * (t[at:last] % 1 < 0.5)
        else:
            one, other = rng.choice(rows), rng.choice(columns)
            both = np.sin(2 * np.pi * one * t[at:last]) + np.sin(2 * np.pi * other * t[at:last])
            found[at:last] = both / 2 * (t[at:last] % 0.2 < 0.1)
        at = last
    return found


def _chords(n: int, rng: np.random.Generator) -> Samples:
    """Struck strings: a chord every other second, each note with overtones that die away."""
    found, length = np.zeros(n), 3 * SAMPLE_RATE
    t = _time(length)
    for at in range(0, n, 2 * SAMPLE_RATE):
        root = 110 * 2 ** (int(24 * rng.random()) / 12)
        for ratio in (1, 5 / 4 if rng.random() < 0.5 else 6 / 5, 3 / 2, 2):
            note = sum(np.sin(2 * np.pi * root * ratio * k * t) / k**2 for k in (1, 2, 3, 4))
            struck = np.asarray(note) * np.exp(-2.5 * t) * np.minimum(1, t / 0.005)
            found[at : at + length] += struck[: max(0, n - at)]
    return found


def _band(samples: Samples, low: float, high: float) -> Samples:
    """Twelve decibels an octave less outside."""
    spectrum = np.fft.rfft(samples)
    frequency = np.maximum(1, np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE))
    gain = 1 / np.sqrt((1 + (frequency / high) ** 4) * (1 + (low / frequency) ** 4))
    return np.fft.irfft(spectrum * gain, len(samples))


def _clicks(n: int, rng: np.random.Generator) -> Samples:
    """Somebody types: keys go down and come up, in bursts."""
    found, at = np.zeros(n), 0
    while at < n - SAMPLE_RATE:
        for _ in range(int(rng.uniform(5, 40))):
            for gain, wait_s in ((1.0, rng.uniform(0.05, 0.1)), (0.4, rng.uniform(0.03, 0.2))):
                length = int(rng.uniform(0.004, 0.02) * SAMPLE_RATE)
                if at + length < n:
                    fading = np.exp(-5 * np.arange(length) / length)
                    found[at : at + length] += gain * rng.standard_normal(length) * fading
                at += int(wait_s * SAMPLE_RATE)
        at += int(rng.uniform(0.5, 3) * SAMPLE_RATE)
    return _band(found, 600, 6000)


def _breath(n: int, rng: np.random.Generator) -> Samples:
    """In and out: noise through a mouth, with no voice in it."""
    found, at = np.zeros(n), 0
    while at < n:
        for low, high, length_s in ((500, 3500, 1.2), (250, 1800, 1.6)):
            length = int(length_s * rng.uniform(0.8, 1.2) * SAMPLE_RATE)
            swell = np.sin(np.pi * np.arange(length) / length) ** 1.5
            sound = _band(rng.standard_normal(length), low, high) * swell
            found[at : at + length] = sound[: max(0, n - at)]
            at += length + int(rng.uniform(0.1, 0.8) * SAMPLE_RATE)
    return found


_STEADY: dict[str, Callable[[int, np.random.Generator], Samples]] = {
    "white noise": _white,
    "pink noise": _pink,
    "hum": _hum,
}
_COMING_AND_GOING: dict[str, Callable[[int, np.random.Generator], Samples]] = {
    "tones": _tones,
    "chords": _chords,
    "keyboard": _clicks,
    "breath": _breath,
}


def noises(seconds: float, folder: Path | None) -> dict[str, Pcm]:
    """So much of each. folder: a corpus, whose rooms are heard then."""
    n = round(seconds * SAMPLE_RATE)
    found = {"silence": np.zeros(n, np.int16)}
    for number, (name, make) in enumerate((_STEADY | _COMING_AND_GOING).items()):
        samples = make(n, np.random.default_rng([SEED, number]))
        if name in _STEADY:
            samples *= _steps(n) / np.sqrt(np.mean(samples**2))
        else:
            samples *= 10 ** (LOUDEST_DB / 20) / np.abs(samples).max() * np.sqrt(2)
        found[name] = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    if folder and len(room := corpus.rooms(folder)):
        found["rooms"] = np.resize(room, n)  # again and again
    return found


def _steps(n: int) -> Samples:
    """Up and down again between the quietest and the loudest level, ten decibels at a time."""
    levels = np.arange(QUIETEST_DB, LOUDEST_DB + 1, 10)
    levels = np.concatenate([levels, levels[-2:0:-1]])
    step = np.arange(n) // round(STEP_S * SAMPLE_RATE)
    return 10 ** (levels[step % len(levels)] / 20)
