"""
Texts that say the same again and again: found in tokens, and judged by what is heard.

Whisper loops where there is nothing to hear, and people say "no, no, no, no" too; on that it loops
as well, for it cannot count. So of a loop as many repeats are kept as there is evidence for: sound
that comes again in equal distances, or the decoder's attention that went on from one to the next.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dalston.triton.characters import letters
from dalston.triton.features import HOP, log_mel

# So many repeats of the same few tokens at the end are a loop.
LOOP_REPEATS, LOOP_LONGEST = 4, 12
# So many words that come again in the same order.
REPEATED_WORDS = 3
# Frames of sound, of 10 ms, and bands of its spectrum. What is said again comes after so many
# frames; it sounds so much like before (a correlation), and so much more than what lies between.
_BANDS, _SHORTEST, _LONGEST = 40, 12, 250
_ALIKE, _DISTINCT = 0.4, 0.3
# Of several such distances the shortest counts if it is nearly as good: twice it is one too. Going
# back from the end each repeat has to be like the one after it.
_NEARLY, _STILL_ALIKE, _COMPARED = 0.75, 0.3, 20
# A repeat that is heard is attended so much later than all before it.
_LATER_S = 0.1


def compression_ratio(text: str) -> float:
    """Of its characters, not of the bytes that spell them: in scripts of three bytes a letter, of
    which two are always the same, all text would look as if it repeated itself."""
    numbers = {character: number for number, character in enumerate(dict.fromkeys(text))}
    data = bytes(numbers[character] % 256 for character in text)
    return len(data) / len(zlib.compress(data))


def repeats_itself(text: str) -> bool:
    """Whether REPEATED_WORDS come twice in the same order."""
    words = [letters(word) for word in text.split()]
    runs = [tuple(words[at : at + REPEATED_WORDS]) for at in range(len(words))]
    runs = runs[: 1 - REPEATED_WORDS]
    return len(set(runs)) < len(runs)


def loop(tokens: Sequence[int]) -> tuple[int, int]:
    """How many tokens are repeated at the end, and how often they stand there; 0 and 1 if they
    stand there less than LOOP_REPEATS times."""
    for period in range(1, min(LOOP_LONGEST, len(tokens) // LOOP_REPEATS) + 1):
        repeats = 1
        end = len(tokens)
        unit = tokens[end - period : end]
        while tokens[end - (repeats + 1) * period : end - repeats * period] == unit:
            repeats += 1
        if repeats >= LOOP_REPEATS:
            return period, repeats
    return 0, 1


def without_loop(tokens: list[int], keep: int = 0, heard: int = 1) -> list[int]:
    """The same with no more repeats at its end than are heard, if there is a loop.

    The first `keep` tokens stay whatever they are.
    """
    period, repeats = loop(tokens)
    return tokens[: max(keep, len(tokens) - max(0, repeats - max(1, heard)) * period)]


def attended(times: Sequence[float], period: int, repeats: int) -> int:
    """How many of the repeats at the end were chosen at a later place in the audio than all before.

    times: seconds, attended by each token.
    """
    count, furthest = 1, max(times[-repeats * period :][:period], default=0.0)
    for at in range(len(times) - (repeats - 1) * period, len(times), period):
        latest = max(times[at : at + period])
        if latest >= furthest + _LATER_S:
            count += 1
        furthest = max(furthest, latest)
    return count


def sounded(audio: npt.NDArray[np.int16]) -> int:
    """How often the last thing that sounds was there in equal distances; 1 if only once."""
    frames = len(audio) // HOP
    if not frames:
        return 1
    mel = log_mel(audio[: frames * HOP], frames, _BANDS).T.astype(np.float64)
    loud = np.flatnonzero(mel.max(1) > (mel.min() + mel.max()) / 2)
    if not len(loud):
        return 1
    mel = mel[loud[0] : loud[-1] + 1]
    for part in mel, mel[len(mel) // 2 :]:
        mean = part.mean(0)
        if lag := _distance(part - mean):
            return max(1, round(_extent(mel - mean, lag) / lag))
    return 1


def _distance(mel: npt.NDArray[np.float64]) -> int:
    """The frames after which the sound comes again; 0 if it does not."""
    count, most = len(mel), min(_LONGEST, len(mel) // 2)
    spectrum = np.fft.rfft(mel, 2 * count, axis=0)
    products = np.fft.irfft((np.abs(spectrum) ** 2).sum(1))[: most + 1]
    power = np.concatenate([[0.0], np.cumsum((mel**2).sum(1))])
    lags = np.arange(most + 1)
    alike = products / np.maximum(np.sqrt((power[count] - power[lags]) * power[count - lags]), 1e-9)
    valley = np.minimum.accumulate(alike)
    peaks = [
        lag
        for lag in range(_SHORTEST, most)
        if alike[lag] == alike[lag - 1 : lag + 2].max()
        and alike[lag] >= _ALIKE
        and alike[lag] >= valley[lag] + _DISTINCT
    ]
    return next((lag for lag in peaks if alike[lag] >= _NEARLY * alike[peaks].max()), 0)


def _extent(mel: npt.NDArray[np.float64], lag: int) -> int:
    """The frames at the end that are like those a lag before or after them."""
    compared = np.ones(max(lag, _COMPARED))
    power = (mel**2).sum(1)
    if len(mel) - lag < len(compared):
        return 0

    def summed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.convolve(values, compared, "valid")

    both = np.sqrt(summed(power[lag:]) * summed(power[:-lag]))
    alike = summed((mel[lag:] * mel[:-lag]).sum(1)) / np.maximum(both, 1e-9)
    different = np.flatnonzero(alike < _STILL_ALIKE)
    begins = int(different[-1]) + 1 if len(different) else 0
    return len(mel) - begins if begins < len(alike) else 0
