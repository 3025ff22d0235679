"""
Synthetic speech: say(text, voice) -> Speech, with the place of each word where the engine tells.

Three engines from Debian (`apt-get install espeak-ng flite festival festvox-kallpc16k
festvox-kdlpc16k festvox-us-slt-hts`), each a voice source unlike the others:

    espeak-ng   formants and Klatt; about 100 variants x accents x rate x pitch
    flite       diphones and clustered units: kal, kal16, awb, slt, rms
    festival    diphones (kal, ked) and HTS (slt)

HELD_OUT voices are for measuring alone: nothing is ever trained on them.
"""

import ctypes
import random
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

RATE = 16_000  # Hertz, of everything in this recipe

HELD_OUT_VARIANTS = "f4 m7 klatt5 linda Mike steph3 boris Alicia rob sandro".split()
HELD_OUT_ACCENTS = ["en-gb-scotland", "en-us-nyc"]
HELD_OUT_OTHERS = ["flite:rms", "festival:ked_diphone"]

_ACCENTS = {
    "en": ["en", "en-us", "en-us", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"],
    "es": ["es", "es-419"],
    "de": ["de"],
    "fr": ["fr", "fr-be", "fr-ch"],
}
# Whispering, robots and such: kept rare, they are no way people speak.
_ODD = re.compile(r"demonic|whisper|croak|robo|announcer|fast$", re.IGNORECASE)


@dataclass(frozen=True)
class Speech:
    samples: np.ndarray  # float32 at RATE, silence at both ends removed
    words: list[tuple[float, float]] | None  # start and end of each word, seconds


def espeak_variants(held_out: bool) -> list[str]:
    folders = list(Path("/usr/lib").glob("*/espeak-ng-data/voices/!v"))
    if not folders:
        raise SystemExit("espeak-ng is missing: apt-get install espeak-ng")
    names = sorted(path.name for path in folders[0].iterdir() if " " not in path.name)
    return [name for name in names if (name in HELD_OUT_VARIANTS) == held_out]


def training_voice(r: random.Random, language: str) -> str:
    """A voice to train on. Spanish, German and French are spoken by espeak alone."""
    engine = r.random() if language == "en" else 0.0
    if engine < 0.72:
        variants = espeak_variants(held_out=False)
        odd = [name for name in variants if _ODD.search(name)]
        plain = [name for name in variants if not _ODD.search(name)]
        variant = r.choice(odd if r.random() < 0.04 else plain)
        return f"espeak:{r.choice(_ACCENTS[language])}+{variant}"
    if engine < 0.90:
        return "flite:" + r.choice(["kal", "kal16", "awb", "awb", "slt", "slt"])
    return "festival:" + r.choice(["kal_diphone", "cmu_us_slt_arctic_hts"])


def held_out_voice(r: random.Random, engine: str) -> str:
    if engine == "espeak":
        return f"espeak:{r.choice(HELD_OUT_ACCENTS)}+{r.choice(espeak_variants(held_out=True))}"
    return next(voice for voice in HELD_OUT_OTHERS if voice.startswith(engine))


def say(texts: Sequence[str], voice: str, r: random.Random) -> list[Speech | None]:
    """Speak each text with random rate (and pitch, where the engine has it); None: it could not."""
    engine, _, name = voice.partition(":")
    if engine == "espeak":
        return [_espeak().say(text, name, r) for text in texts]
    if engine == "flite":
        return [_flite(text, name, r) for text in texts]
    return _festival(texts, name, r)


def _trimmed(samples: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    """Resample to RATE and cut what is quieter than 2 % of the loudest 10 ms at either end;
    also the seconds cut in front."""
    x = resample_poly(np.asarray(samples, np.float32), RATE, rate) if rate != RATE else samples
    x = np.asarray(x, np.float32)
    count = len(x) // 160
    if count < 3:
        return x, 0.0
    loudness = np.sqrt((x[: count * 160].reshape(count, 160) ** 2).mean(1))
    loud = np.flatnonzero(loudness > 0.02 * loudness.max())
    first, last = max(0, loud[0] - 1) * 160, min(count, loud[-1] + 2) * 160
    return x[first:last], first / RATE


class _Event(ctypes.Structure):  # espeak_EVENT of speak_lib.h
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_EVENT_END_OF_LIST, _EVENT_WORD = 0, 1
_RATE, _PITCH, _RANGE, _WORDGAP = 1, 3, 4, 7  # espeak_PARAMETER


class _Espeak:
    """libespeak-ng, which unlike its command line reports where each word begins."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._sample_rate = self._library.espeak_Initialize(2, 0, None, 0)  # synchronous
        self._samples: list[np.ndarray] = []
        self._words: list[tuple[int, float]] = []
        self._callback = _CALLBACK(self._receive)  # referenced, or it would be collected
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END_OF_LIST:
            event = events[index]
            if event.type == _EVENT_WORD:  # text positions count from 1
                self._words.append((event.text_position - 1, event.audio_position / 1000))
            index += 1
        return 0

    def say(self, text: str, voice: str, r: random.Random) -> Speech | None:
        self._samples, self._words = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            return None
        for parameter, value in (
            (_RATE, r.randint(120, 230)),  # words a minute
            (_PITCH, r.randint(20, 80)),
            (_RANGE, r.randint(20, 80)),
            (_WORDGAP, r.choice([0, 0, 0, 1, 3, 6])),  # units of 10 ms
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        utf8 = 1
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, utf8, None, None)
        if not self._samples:
            return None
        pcm = np.concatenate(self._samples).astype(np.float32) / 32768
        samples, cut = _trimmed(pcm, self._sample_rate)
        starts = {at: max(0.0, seconds - cut) for at, seconds in self._words}
        return Speech(samples, _word_times(text, starts, len(samples) / RATE))


def _word_times(
    text: str, starts: dict[int, float], end: float
) -> list[tuple[float, float]] | None:
    """espeak joins some words into one event ("on the"): they share its time by their letters."""
    positions = [match.start() for match in re.finditer(r"\S+", text)]
    if not positions or positions[0] not in starts:
        return None
    known = [(at, starts[at]) for at in positions if at in starts] + [(len(text) + 1, end)]
    xs, ys = zip(*known, strict=True)
    times = [float(np.interp(at, xs, ys)) for at in positions] + [end]
    return [(round(a, 3), round(b, 3)) for a, b in zip(times, times[1:], strict=False)]


_engine: _Espeak | None = None


def _espeak() -> _Espeak:
    global _engine  # the library allows one instance in a process
    if _engine is None:
        _engine = _Espeak()
    return _engine


def _flite(text: str, voice: str, r: random.Random) -> Speech | None:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        stretch = f"duration_stretch={r.uniform(0.8, 1.25):.2f}"
        command = ["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", file.name]
        subprocess.run(command, check=True)
        samples, rate = soundfile.read(file.name, dtype="float32")
    return Speech(_trimmed(samples, rate)[0], None)


def _festival(texts: Sequence[str], voice: str, r: random.Random) -> list[Speech | None]:
    """One process for all texts: festival takes a second to start."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"(voice_{voice})"]
        for index, text in enumerate(texts):
            lines.append(f"(Parameter.set 'Duration_Stretch {r.uniform(0.8, 1.25):.2f})")
            lines.append(f'(set! u (SynthText "{text}"))')
            lines.append(f'(utt.save.wave u "{folder}/{index}.wav")')
            lines.append(f'(format t "utterance {index}\\n")')
            lines.append(
                '(mapcar (lambda (w) (format t "%s %s %s\\n" (item.name w) '
                '(item.feat w "word_start") (item.feat w "word_end"))) '
                "(utt.relation.items u 'Word))"
            )
        script = Path(folder, "say.scm")
        script.write_text("\n".join(lines))
        command = ["festival", "-b", str(script)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        speech: list[Speech | None] = []
        spoken = {
            int(number): body
            for number, body in re.findall(r"utterance (\d+)\n((?:(?!utterance).*\n)*)", shown)
        }
        for index, text in enumerate(texts):
            path = Path(folder, f"{index}.wav")
            if not path.exists():
                speech.append(None)
                continue
            samples, cut = _trimmed(*soundfile.read(path, dtype="float32"))
            rows = [row.split() for row in spoken.get(index, "").splitlines()]
            words = [(max(0.0, float(a) - cut), float(b) - cut) for _, a, b in rows]
            # Festival splits "o'clock" and the like: then the places are not those of our words.
            speech.append(Speech(samples, words if len(words) == len(text.split()) else None))
    return speech
