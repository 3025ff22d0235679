"""
The table of the model card: what the demo checkpoint makes of speech it was not trained on.

    python evaluate.py BANK_FOLDER CHECKPOINT_FOLDER

The checkpoint is converted and run as it is served: int8, right-sized windows and windows of
30 s. Audio is given as an endpointer would cut it: 0.3 s before, 0.2 s behind. Every set is drawn
with a fixed seed. Prints a Markdown table and, last, one line of JSON.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import soundfile
from bank import SAMPLES, Clip
from compose import Composer
from tokens import Compact
from voices import RATE

from dalston.triton.conversion import convert
from dalston.triton.whisper import Row, Transcript, Whisper

SEED = 99
BATCH = 8


@dataclass
class Item:
    audio: np.ndarray  # float32
    text: str
    language: str = "en"


def wrong(items: list[Item], found: list[Transcript]) -> int:
    """Words that are wrong, missing or too many."""
    said, heard = [item.text for item in items], [result.text for result in found]
    compared = jiwer.process_words(said, heard)
    return compared.substitutions + compared.deletions + compared.insertions


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


def single(composer: Composer, clip: Clip) -> Item:
    audio = np.concatenate([silence(0.3), composer.clip(clip)[0], silence(0.2)])
    return Item(audio, clip.text, clip.language)


def string(
    composer: Composer, r: np.random.Generator, low: int, high: int, snr: float | None = None
) -> Item:
    """Digits of one speaker in a row; with noise `snr` decibels below, if given."""
    speaker = composer.speakers[r.choice(sorted(composer.speakers))]
    audio, words = silence(0.3), list[str]()
    for _ in range(int(r.integers(low, high + 1))):
        clip = speaker[int(r.integers(len(speaker)))]
        samples, _ = composer.clip(clip)
        if len(audio) + len(samples) > 29 * RATE:
            break
        words.append(clip.text)
        audio = np.concatenate([audio, samples, silence(r.uniform(0.05, 0.4))])
    audio = audio * 0.5
    if snr is not None:
        power = np.sqrt(np.mean(audio[audio != 0] ** 2))
        audio = audio + composer.noise(r, len(audio)) * power * 10 ** (-snr / 20)
    return Item(audio.astype(np.float32), " ".join(words))


def sets(folder: Path) -> dict[str, list[Item]]:
    compact, r = Compact(), np.random.default_rng(SEED)

    def composer(*splits: str) -> Composer:
        made = Composer(folder, compact, splits)
        # What noise is made of must not be the test set itself.
        made.english = made.english or composer("train").english
        return made

    def drawn(clips: list[Clip], count: int) -> list[Clip]:
        return [clips[i] for i in r.permutation(len(clips))[:count]]

    test, held = composer("test"), composer("held-out-speaker")
    new, unheard = composer("new-text"), composer("held-out-voice")
    humans = [clip for clips in test.speakers.values() for clip in clips]
    strangers = [clip for clips in held.speakers.values() for clip in clips]
    found = {
        "human digits, test split": [single(test, clip) for clip in humans],
        "human strings of 1-10": [string(test, r, 1, 10) for _ in range(150)],
        "human strings of 1-10, SNR 5-20 dB": [
            string(test, r, 1, 10, r.uniform(5, 20)) for _ in range(100)
        ],
        "human strings of 20-30": [string(test, r, 20, 30) for _ in range(30)],
        "held-out human speaker, digits": [single(held, clip) for clip in drawn(strangers, 250)],
        "held-out human speaker, strings of 1-10": [string(held, r, 1, 10) for _ in range(150)],
    }
    for engine in ("espeak", "flite", "festival"):
        clips = [clip for clip in new.english if clip.voice.startswith(engine)]
        found[f"new sentences, {engine} voices"] = [single(new, c) for c in drawn(clips, 150)]
    for engine in ("espeak", "flite", "festival"):
        clips = [clip for clip in unheard.english if clip.voice.startswith(engine)]
        found[f"held-out {engine} voices"] = [single(unheard, c) for c in drawn(clips, 150)]
    for language, clips in sorted(new.foreign.items()):
        found[f"new sentences, language {language}"] = [single(new, c) for c in drawn(clips, 150)]
    found["the ten samples"] = samples()
    nothing = [silence(r.uniform(0.5, 10)) for _ in range(25)]
    nothing += [
        (test.noise(r, int(r.uniform(0.5, 10) * RATE)) * 10 ** (-r.uniform(12, 60) / 20))
        for _ in range(175)
    ]
    found["noise, tones, silence"] = [Item(x.astype(np.float32), "") for x in nothing]
    return found


def samples() -> list[Item]:
    """Each sentence of the committed recordings."""
    items: list[Item] = []
    for sample in json.loads(SAMPLES.read_text()):
        audio, _ = soundfile.read(SAMPLES.parent / sample["file"], dtype="float32")
        for text, (start, end) in zip(sample["sentences"], sample["times"], strict=True):
            items.append(Item(audio[int((start - 0.3) * RATE) : int((end + 0.2) * RATE)], text))
    return items


def heard(
    whisper: Whisper, items: list[Item], full: bool, language: str | None
) -> list[Transcript]:
    rows = [
        Row(
            np.rint(np.clip(item.audio, -1, 1) * 32767).astype(np.int16),
            language=language or item.language,
            full_window=full,
        )
        for item in items
    ]
    found: list[Transcript] = []
    for first in range(0, len(rows), BATCH):
        for result in whisper.transcribe(rows[first : first + BATCH]):
            if isinstance(result, Exception):
                raise result
            found.append(result)
    return found


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        convert(Path(sys.argv[2]), Path(folder, "model"), "int8_float32")
        whisper = Whisper(Path(folder, "model"))
    table: dict[str, dict[str, float]] = {}
    print("| set | items | words | WER right-sized | WER 30 s | language right |")
    print("|---|---|---|---|---|---|")
    for name, items in sets(Path(sys.argv[1])).items():
        sized, full = (heard(whisper, items, full, None) for full in (False, True))
        words = sum(len(item.text.split()) for item in items)
        row: dict[str, float] = {"items": len(items), "words": words}
        if words:
            detected = heard(whisper, items, False, "auto")
            right = sum(d.language == i.language for d, i in zip(detected, items, strict=True))
            row |= {
                "sized": round(100 * wrong(items, sized) / words, 2),
                "full": round(100 * wrong(items, full) / words, 2),
                "language": round(100 * right / len(items), 1),
            }
            cells = f"{row['sized']:.1f} % | {row['full']:.1f} % | {row['language']:.0f} %"
        else:
            texts = [100 * sum(bool(t.text) for t in found) / len(items) for found in (sized, full)]
            row |= {"sized": texts[0], "full": texts[1]}
            cells = f"{texts[0]:.1f} % with any text | {texts[1]:.1f} % | "
        table[name] = row
        print(f"| {name} | {len(items)} | {words} | {cells} |", flush=True)
    print(json.dumps(table))


if __name__ == "__main__":
    main()
