"""
The sample recordings in demo/samples: real speech, and what is said when.
"""

import functools
import json
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dalston.triton.contract import SAMPLE_RATE

Pcm = npt.NDArray[np.int16]

_FOLDER = Path(__file__).resolve().parents[1] / "demo" / "samples"
_AROUND_S = 0.3  # of silence that an endpointer leaves


@dataclass(frozen=True)
class Sentence:
    text: str
    start: float  # seconds
    end: float


@dataclass(frozen=True)
class Recording:
    name: str
    audio: Pcm
    sentences: tuple[Sentence, ...]
    language: str

    def cut(self, sentence: Sentence) -> Pcm:
        """The audio of one sentence, as it is cut out of a session."""
        first, last = sentence.start - _AROUND_S, sentence.end + _AROUND_S
        return self.audio[max(0, round(first * SAMPLE_RATE)) : round(last * SAMPLE_RATE)]


def recordings() -> tuple[Recording, ...]:
    """The ten, in English."""
    return _read("samples.json")


def foreign() -> tuple[Recording, ...]:
    """One in Spanish, one in German, one in French."""
    return _read("languages.json")


def human() -> tuple[Recording, ...]:
    """One of three people, in English."""
    return _read("human.json")


@functools.cache
def _read(index: str) -> tuple[Recording, ...]:
    found = list[Recording]()
    for sample in json.loads((_FOLDER / index).read_text("utf-8")):
        with wave.open(str(_FOLDER / sample["file"])) as file:
            assert (file.getframerate(), file.getnchannels()) == (SAMPLE_RATE, 1)
            audio = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        times = zip(sample["sentences"], sample["times"], strict=True)
        sentences = tuple(Sentence(text, start, end) for text, (start, end) in times)
        language = sample.get("language", "en")
        found.append(Recording(sample["file"], audio, sentences, language))
    return tuple(found)


def spoken() -> list[Pcm]:
    """Every sentence of every recording, cut out."""
    return [
        recording.cut(sentence) for recording in recordings() for sentence in recording.sentences
    ]
