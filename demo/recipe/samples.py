"""
The recordings that the demo plays and the tests transcribe: demo/samples/*.wav.

    python samples.py text     draw their sentences (done once, before any training)
    python samples.py speak    synthesise them

Ten recordings; the last three are spoken by voices that training never hears. Each says three
or four sentences with pauses an endpoint falls into. samples.json holds for each: file, voice,
sentences, and the seconds at which each sentence starts and ends. languages.json says the same of
es.wav, de.wav and fr.wav: voices that training never hears, sentences that it may have met.
"""

import json
import random
import sys
from pathlib import Path

import grammar
import numpy as np
import soundfile
import voices

FOLDER = Path(__file__).resolve().parent.parent / "samples"
SEED = 1984
VOICES = [
    "festival:cmu_us_slt_arctic_hts",
    "flite:slt",
    "flite:awb",
    "flite:kal16",
    "espeak:en-us+Andy",
    "espeak:en-gb-x-rp+f2",
    "espeak:en+m3",
    "espeak:en-gb-scotland+linda",  # held out
    "espeak:en-us-nyc+Mike",  # held out
    "flite:rms",  # held out
]
LANGUAGES = {"es": "espeak:es+m7", "de": "espeak:de+f4", "fr": "espeak:fr+m7"}  # held out


def draw() -> list[dict]:
    r, samples = random.Random(SEED), []
    for index, voice in enumerate(VOICES):
        sentences: list[str] = []
        wanted = r.choice([3, 4])
        while len(sentences) < wanted:
            text = grammar.sentence(r)
            if 3 <= len(text.split()) <= 12:
                sentences.append(text)
        samples.append({"file": f"{index:02}.wav", "voice": voice, "sentences": sentences})
    return samples


def draw_languages() -> list[dict]:
    r, samples = random.Random(SEED), []
    for language, voice in LANGUAGES.items():
        sentences: list[str] = []
        while len(sentences) < 3:
            text = grammar.sentence(r, language)
            if 4 <= len(text.split()) <= 9:
                sentences.append(text)
        file = f"{language}.wav"
        samples.append({"file": file, "language": language, "voice": voice, "sentences": sentences})
    return samples


def speak(samples: list[dict]) -> None:
    for index, sample in enumerate(samples):
        r = random.Random(SEED + index)
        parts = [np.zeros(int(r.uniform(0.4, 0.7) * voices.RATE), np.float32)]
        sample["times"] = []
        # A pause longer than the default endpoint (0.5 s of silence) ends an utterance.
        for speech in voices.say(sample["sentences"], sample["voice"], r):
            assert speech is not None
            start = sum(map(len, parts)) / voices.RATE
            parts.append(speech.samples / np.abs(speech.samples).max() * 0.5)
            end = sum(map(len, parts)) / voices.RATE
            sample["times"].append([round(start, 3), round(end, 3)])
            parts.append(np.zeros(int(r.uniform(0.9, 1.3) * voices.RATE), np.float32))
        audio = np.concatenate(parts)
        # A room is never digitally silent.
        audio += np.random.default_rng(SEED + index).standard_normal(len(audio)) * 3e-4
        soundfile.write(FOLDER / sample["file"], audio, voices.RATE, subtype="PCM_16")


if __name__ == "__main__":
    if sys.argv[1:] not in (["text"], ["speak"]):
        raise SystemExit(__doc__)
    FOLDER.mkdir(exist_ok=True)
    for name, drawn in (("samples.json", draw), ("languages.json", draw_languages)):
        index = FOLDER / name
        if sys.argv[1] == "text":
            samples = drawn()
        else:
            samples = json.loads(index.read_text())
            speak(samples)
        index.write_text(json.dumps(samples, indent=1) + "\n")
