"""
The clip bank: every recording the recipe composes its windows from, made once, in one file.

    python bank.py FSDD_FOLDER OUT_FOLDER [--scale 1.0]

Human clips are the digits of the Free Spoken Digit Dataset (FSDD_FOLDER holds its
`{digit}_{speaker}_{index}.wav`). Its own split is kept: index 0-4 is "test" and never trained
on; the speaker george is "held-out-speaker" altogether. Synthetic clips are sentences of
grammar.py by the voices of voices.py; "held-out-voice" clips are for measuring alone.

OUT_FOLDER/bank.npy: int16 at 16 kHz, all clips end to end.
OUT_FOLDER/bank.json: a list of clips, fields as in Clip.
"""

import argparse
import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import grammar
import numpy as np
import soundfile
import voices

HELD_OUT_SPEAKER = "george"
SAMPLES = Path(__file__).resolve().parent.parent / "samples" / "samples.json"

# Clips of each kind at --scale 1; festival takes 0.1 s for one, flite 0.06 s, espeak 3 ms.
TRAIN_ENGLISH, TRAIN_FOREIGN, NEW_TEXT, HELD_OUT = 36_000, 4_000, 400, 300


@dataclass(frozen=True)
class Clip:
    offset: int  # samples into bank.npy
    length: int  # samples
    text: str
    words: list[tuple[float, float]] | None  # start and end of each word in the clip, seconds
    voice: str
    language: str
    split: str  # train, dev, test, held-out-speaker, new-text or held-out-voice


class Bank:
    def __init__(self) -> None:
        self.clips: list[Clip] = []
        self._pcm: list[np.ndarray] = []
        self._length = 0

    def add(self, speech: voices.Speech | None, text: str, voice: str, language: str, split: str):
        if speech is None or (peak := np.abs(speech.samples).max(initial=0)) < 1e-4:
            return
        pcm = (speech.samples / peak * 0.7 * 32767).astype(np.int16)
        words = speech.words and [(round(float(a), 3), round(float(b), 3)) for a, b in speech.words]
        self.clips.append(Clip(self._length, len(pcm), text, words, voice, language, split))
        self._pcm.append(pcm)
        self._length += len(pcm)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "bank.npy", np.concatenate(self._pcm))
        (folder / "bank.json").write_text(json.dumps([asdict(clip) for clip in self.clips]))


def load(folder: Path) -> tuple[np.ndarray, list[Clip]]:
    pcm = np.load(folder / "bank.npy", mmap_mode="r")
    return pcm, [Clip(**row) for row in json.loads((folder / "bank.json").read_text())]


def add_humans(bank: Bank, folder: Path) -> None:
    for path in sorted(folder.rglob("*.wav")):
        digit, speaker, index = re.fullmatch(r"(\d)_(\w+)_(\d+)", path.stem).groups()
        samples, _ = voices._trimmed(*soundfile.read(path, dtype="float32"))
        split = "test" if int(index) < 5 else "dev" if int(index) < 7 else "train"
        if speaker == HELD_OUT_SPEAKER:
            split = "held-out-speaker"
        speech = voices.Speech(samples, [(0.0, len(samples) / voices.RATE)])
        bank.add(speech, grammar.number(int(digit)), f"human:{speaker}", "en", split)


def add_sentences(
    bank: Bank, r: random.Random, count: int, language: str, split: str, voice_of, avoid: set[str]
) -> None:
    """`count` sentences no longer than that, by random voices; a voice speaks 20 at a time,
    since festival takes a second to start."""
    done = 0
    while done < count:
        voice = voice_of()
        texts = [grammar.sentence(r, language) for _ in range(min(20, count - done))]
        texts = [text for text in texts if text not in avoid]
        for text, speech in zip(texts, voices.say(texts, voice, r), strict=True):
            bank.add(speech, text, voice, language, split)
        done += len(texts)
        if done % 2000 < 20:
            print(f"{split} {language}: {done} of {count}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("fsdd", type=Path, help="folder of the Free Spoken Digit Dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer synthetic clips")
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()

    bank, r = Bank(), random.Random(args.seed)
    # What the committed samples say is never trained on, fixed phrases apart: they are the
    # vocabulary itself.
    sampled = {text for sample in json.loads(SAMPLES.read_text()) for text in sample["sentences"]}
    avoid = {text for text in sampled if len(text.split()) > 2 and grammar.has_number(text)}
    add_humans(bank, args.fsdd)
    for language in grammar.LANGUAGES:
        count = TRAIN_ENGLISH if language == "en" else TRAIN_FOREIGN
        for split, number in (("train", count * args.scale), ("new-text", NEW_TEXT)):
            if split == "new-text":  # no sentence of it was trained on
                trained = {clip.text for clip in bank.clips if len(clip.text.split()) > 2}
                texts = avoid | trained
            else:
                texts = avoid
            add_sentences(
                bank, r, int(number), language, split,
                lambda language=language: voices.training_voice(r, language), texts,
            )  # fmt: skip
    for engine in ("espeak", "flite", "festival"):
        add_sentences(
            bank, r, HELD_OUT, "en", "held-out-voice",
            lambda engine=engine: voices.held_out_voice(r, engine), set(),
        )  # fmt: skip
    bank.save(args.out)
    hours = sum(clip.length for clip in bank.clips) / voices.RATE / 3600
    print(f"{len(bank.clips)} clips, {hours:.1f} hours")


if __name__ == "__main__":
    main()
