"""
Random training windows: clips of the bank laid out as the server will present them.

A window is one of the server's sizes. Audio fills it to at least a quarter second before the
end; behind the audio is digital silence. The audio may break off in the middle of a word, as it
does for a partial; a word of which less than WORD_VISIBLE is heard is not to be written.
"""

from dataclasses import dataclass
from pathlib import Path

import bank
import numpy as np
from scipy.signal import fftconvolve, lfilter
from tokens import Compact
from voices import RATE

WORD_VISIBLE = 0.6
MARGIN = 0.25  # seconds of silence behind the audio

# Shares of the kinds of windows.
KINDS = {"human": 0.26, "english": 0.54, "foreign": 0.09, "mixed": 0.04, "none": 0.07}


@dataclass
class Word:
    text: str
    start: float | None  # seconds in the window; None where the engine does not tell
    end: float | None


class Composer:
    def __init__(self, folder: Path, compact: Compact, splits: tuple[str, ...] = ("train",)):
        self.pcm, clips = bank.load(folder)
        clips = [clip for clip in clips if clip.split in splits]
        self.compact = compact
        self.speakers: dict[str, list[bank.Clip]] = {}
        self.english, self.foreign = [], {}
        for clip in clips:
            if clip.voice.startswith("human"):
                self.speakers.setdefault(clip.voice, []).append(clip)
            elif clip.language == "en":
                self.english.append(clip)
            else:
                self.foreign.setdefault(clip.language, []).append(clip)
        # Sentences of one voice can follow each other as one speaker's.
        self.by_voice: dict[str, list[bank.Clip]] = {}
        for clip in self.english:
            self.by_voice.setdefault(clip.voice, []).append(clip)
        self.hard = 1.0  # 0 to 1: how much noise, reverberation and cutting (a curriculum)

    def clip(self, clip: bank.Clip, speed: float = 1.0) -> tuple[np.ndarray, list[Word]]:
        x = np.asarray(self.pcm[clip.offset : clip.offset + clip.length], np.float32) / 32768
        if speed != 1.0:
            x = np.interp(np.arange(int(len(x) / speed)) * speed, np.arange(len(x)), x)
        texts = clip.text.split()
        if clip.words is None:  # only the first start and the last end are known
            words = [Word(text, None, None) for text in texts]
            words[0].start, words[-1].end = 0.0, len(x) / RATE
        else:
            words = [
                Word(t, a / speed, b / speed) for t, (a, b) in zip(texts, clip.words, strict=True)
            ]
        return x.astype(np.float32), words

    def noise(self, r: np.random.Generator, count: int) -> np.ndarray:
        """`count` samples of unit power that say nothing."""
        kind = r.integers(7)
        white = r.standard_normal(count)
        if kind == 0:
            x = white
        elif kind == 1:
            x = lfilter([1], [1, -0.95], white)  # brownish
        elif kind == 2:
            x = lfilter([1, -0.6], [1, -0.9, 0.1], white)  # pinkish
        elif kind == 3:  # mains hum, fan
            t = np.arange(count) / RATE
            f = r.choice([50, 60, 100, 120]) * r.uniform(0.95, 1.05)
            x = sum(np.sin(2 * np.pi * f * h * t + r.uniform(0, 6)) / h for h in range(1, 6))
            x = x + 0.1 * white
        elif kind == 4:  # clicks, taps, doors
            x = 0.01 * white
            for _ in range(int(r.integers(1, 4 + count // RATE * 3))):
                at = int(r.integers(0, count))
                width = min(count - at, int(r.integers(50, 1500)))
                decay = np.exp(-np.arange(width) / (width / 5))
                x[at : at + width] += r.standard_normal(width) * decay * r.uniform(0.2, 1)
        elif kind == 5:  # five to eight people at once
            x = np.zeros(count)
            for _ in range(int(r.integers(5, 9))):
                voice = self.clip(self._any(r, self.english))[0]
                x += np.roll(np.resize(voice, count), int(r.integers(count)))
        else:  # notes and chords
            x, at = 0.003 * white, 0
            while at < count:
                width = min(count - at, int(r.uniform(0.1, 1.2) * RATE))
                t = np.arange(width) / RATE
                root = 110 * 2 ** (r.integers(0, 36) / 12)
                for step in r.choice([0, 3, 4, 7, 10, 12], int(r.integers(1, 4)), replace=False):
                    f = root * 2 ** (step / 12)
                    partials = range(1, int(r.integers(2, 6)))
                    tone = sum(np.sin(2 * np.pi * f * h * t) / h**1.5 for h in partials)
                    x[at : at + width] += tone * np.exp(-t * r.uniform(0, 4))
                at += width
        return (x / (np.sqrt(np.mean(x**2)) + 1e-9)).astype(np.float32)

    @staticmethod
    def _any(r: np.random.Generator, items):
        return items[int(r.integers(len(items)))]

    def _clips(self, r: np.random.Generator, kind: str):
        """Endless clips that one speaker might say in a row."""
        speaker = self._any(r, list(self.speakers.values())) if self.speakers else []
        everyone = [clip for clips in self.speakers.values() for clip in clips]
        voice = self.by_voice[self._any(r, self.english).voice] if self.english else []
        language = self._any(r, sorted(self.foreign)) if self.foreign else ""
        one_speaker = r.random() < 0.85
        while True:
            choice = ("human" if r.random() < 0.5 else "english") if kind == "mixed" else kind
            if choice == "human":
                yield self._any(r, speaker if one_speaker else everyone)
            elif choice == "english":
                yield self._any(r, voice if one_speaker else self.english)
            else:
                yield self._any(r, self.foreign[language])

    def window(
        self, r: np.random.Generator, seconds: float, kind: str | None = None
    ) -> tuple[np.ndarray, list[Word], str]:
        """Audio of at most `seconds`, to be followed by silence; its words; its language."""
        kind = kind or r.choice(list(KINDS), p=list(KINDS.values()))
        x = np.zeros(int(seconds * RATE), np.float32)
        words: list[Word] = []
        language, end = "en", 0.0
        breaks_off = r.random() < 0.35 * self.hard
        if kind != "none":
            at = r.choice([r.uniform(0.1, 0.45), r.uniform(0, 1.0)])
            limit = 40 if r.random() < 0.75 else int(r.integers(1, 4))
            speed, pause = r.uniform(0.87, 1.15), r.uniform(0.1, 0.6)
            misses = 0
            for clip in self._clips(r, kind):
                if limit == 0 or misses > 4 or at > seconds - 0.15:
                    break
                human = clip.voice.startswith("human")
                samples, spoken = self.clip(clip, speed * r.uniform(0.95, 1.05) if human else speed)
                duration = len(samples) / RATE
                if at + duration > seconds and not (breaks_off and clip.words is not None):
                    misses += 1
                    continue
                first = int(at * RATE)
                room = min(len(samples), len(x) - first)
                x[first : first + room] += samples[:room] * 10 ** (-r.uniform(0, 6) / 20)
                language = clip.language
                for word in spoken:
                    a, b = (t if t is None else t + at for t in (word.start, word.end))
                    if a is not None and b is not None:
                        if (seconds - a) / (b - a) < WORD_VISIBLE:
                            break
                        b = min(b, seconds)
                    words.append(Word(word.text, a, b))
                end = min(at + duration, seconds)
                gap = r.uniform(0.05, pause) if r.random() < 0.9 else r.uniform(0.6, 1.6)
                at += duration + gap + (0 if human else 0.1)
                limit -= 1
            # The server stops 0.2 s after the last speech, or wherever a partial was due.
            tail = 0.2 if r.random() < 0.5 else r.uniform(0.02, 0.8)
            x = x[: min(len(x), int((end + tail) * RATE))] if words else x
        return self._recorded(r, x, kind), words, language

    def _recorded(self, r: np.random.Generator, x: np.ndarray, kind: str) -> np.ndarray:
        """The same through a room, a microphone and noise."""
        if kind == "none":
            if r.random() < 0.15:
                return x * 0
            return self.noise(r, len(x)) * np.float32(10 ** (-r.uniform(10, 70) / 20))
        if r.random() < 0.18 * self.hard:
            taps = int(RATE * r.uniform(0.08, 0.35))
            h = r.standard_normal(taps) * np.exp(-np.arange(taps) / (taps / r.uniform(3, 7)))
            h[0] = r.uniform(2, 8) * np.sqrt((h**2).sum())
            x = fftconvolve(x, h / abs(h[0]))[: len(x)].astype(np.float32)
        spoken = x[x != 0]
        power = np.sqrt(np.mean(spoken**2)) if len(spoken) else 0.1
        if r.random() < 0.65 * self.hard:
            x = x + self.noise(r, len(x)) * power * 10 ** (-r.uniform(3, 40) / 20)
        loudest = max(float(np.abs(x).max(initial=0)), 1e-3)
        x = x * (10 ** (-r.uniform(0, 26) / 20) / loudest)
        if r.random() < 0.15 * self.hard:  # clipped by a loud input
            x = np.clip(x * 4, -1, 1)
        return x.astype(np.float32)

    def channel(self, r: np.random.Generator, count: int) -> np.ndarray:
        """Frequency responses [count, 80] in log10 power: tilt, waves, telephone lines."""
        k = np.linspace(-1, 1, 80)
        rows = np.zeros((count, 80), np.float32)
        for row in rows:
            wave = np.sin(5 * k + r.uniform(0, 6))
            row += r.normal(0, 0.3) * k + r.normal(0, 0.25) * k**2 + r.normal(0, 0.15) * wave
            if r.random() < 0.2:
                row[int(r.integers(54, 72)) :] -= r.uniform(2, 6)
            if r.random() < 0.12:
                row[: int(r.integers(2, 9))] -= r.uniform(1, 4)
        return rows * self.hard
