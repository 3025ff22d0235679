"""
What callers read aloud: the sample recordings alone, some of them in a row, some in other formats,
and some with messages among the audio.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpus import recordings as of_corpus
from recordings import Recording, foreign, recordings
from support.sounds import converted

from dalston.orchestrator.protocol.messages import Encoding
from dalston.triton.contract import SAMPLE_RATE

OF_CORPUS = 20  # utterances, at least, spread over it

Control = tuple[int, dict[str, Any]]  # the client's frame that it comes before


@dataclass(frozen=True)
class Reading:
    name: str
    audio: bytes
    rate: int
    width: int  # bytes of a frame
    parameters: dict[str, str]
    speech: tuple[tuple[float, float], ...]  # seconds
    controls: tuple[Control, ...] = ()

    @property
    def frames(self) -> int:
        return len(self.audio) // self.width

    @property
    def seconds(self) -> float:
        return self.frames / self.rate

    def spoken(self, at: float, margin: float = 0.3) -> bool:
        """Whether somebody speaks so long before and behind."""
        return any(start + margin <= at <= end - margin for start, end in self.speech)


def _reading(
    parts: tuple[Recording, ...],
    *,
    language: str = "en",
    rate: int = SAMPLE_RATE,
    encoding: Encoding = "pcm_s16le",
    controls: tuple[tuple[float, dict[str, Any]], ...] = (),
    **parameters: str,
) -> Reading:
    """controls: with their seconds."""
    pcm = np.concatenate([part.audio for part in parts])
    speech, at = list[tuple[float, float]](), 0.0
    for part in parts:
        speech += [(at + sentence.start, at + sentence.end) for sentence in part.sentences]
        at += len(part.audio) / SAMPLE_RATE
    name = "+".join(part.name.removesuffix(".wav") for part in parts)
    name += "" if language == "en" else f"({language})"
    plain = rate == SAMPLE_RATE and encoding == "pcm_s16le"
    return Reading(
        name if plain else f"{name}@{rate}/{encoding}",
        pcm.tobytes() if plain else converted(pcm, rate, encoding),
        rate,
        1 if encoding in ("mulaw", "alaw") else 2,
        {"language": language, "sample_rate": str(rate), "encoding": encoding} | parameters,
        tuple(speech),
        tuple((round(second * rate), message) for second, message in controls),
    )


def readings(corpus: Path | None = None) -> list[Reading]:
    """A few dozen, of 7 to 45 s; or of people, of 2 to 50 s, who read what is in the corpus."""
    every, abroad = recordings(), foreign()
    if corpus:
        people = of_corpus(corpus)
        every, abroad = people[:: max(1, len(people) // OF_CORPUS)], ()
    alone = [_reading((one,)) for one in every]
    alone += [_reading((one,), language=one.language) for one in abroad]
    alone += [_reading((one,), language="auto", word_timestamps="true") for one in abroad[:1]]
    rows = [_reading((every[n], every[(n + 3) % 10], every[(n + 7) % 10])) for n in range(0, 10, 2)]
    flush: dict[str, Any] = {"type": "flush"}
    shorter: dict[str, Any] = {"type": "config", "min_silence_duration_ms": 300}
    return [
        *alone,
        *rows,
        _reading((every[1], every[2]), rate=8_000, encoding="mulaw"),
        _reading((every[3], every[4]), rate=24_000),
        _reading((every[5], every[6]), rate=44_100),
        # In the middle of a sentence, and in a pause.
        _told("flushed", (every[7], every[8]), ((2.0, flush), (9.9, flush), (15.0, flush))),
        _told("configured", (every[9], every[0]), ((4.0, shorter), (7.0, flush))),
    ]


def _told(
    name: str, parts: tuple[Recording, ...], controls: tuple[tuple[float, dict[str, Any]], ...]
) -> Reading:
    reading = _reading(parts, controls=controls)
    return Reading(
        f"{reading.name} {name}",
        reading.audio,
        reading.rate,
        reading.width,
        reading.parameters,
        reading.speech,
        reading.controls,
    )
