"""
Put together the human recording: demo/samples/human.wav, and what is said in it in human.json.

    python human.py FOLDER

FOLDER holds the three recordings named in PARTS, as 16 kHz mono. Each is set to the same loudness,
faded in and out over 20 ms, and followed by a pause.
"""

import json
import sys
from pathlib import Path

import numpy as np
import soundfile

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
RATE = 16_000
LOUDNESS = 0.06  # RMS over the whole part
FADE_S, BEFORE_S, PAUSE_S = 0.02, 0.5, 0.9
NOISE = 3e-4  # a room is never digitally silent

PARTS = [
    {
        "file": "jfk.flac",
        "voice": "John F. Kennedy",
        "text": "And so my fellow Americans, ask not what your country can do for you, "
        "ask what you can do for your country.",
        "source": "inaugural address, 20 January 1961",
        "licence": "public domain",
    },
    {
        "file": "LJ001-0004.flac",
        "voice": "Linda Johnson",
        "text": "Produced the block books, which were the immediate predecessors of the true "
        "printed book.",
        "source": "LJ001-0004 of LJ Speech 1.1 (Keith Ito, from a LibriVox recording)",
        "licence": "public domain",
    },
    {
        "file": "1272-128104-0000.flac",
        "voice": "LibriSpeech 1272",
        "text": "Mr. Quilter is the apostle of the middle classes, and we are glad to welcome "
        "his gospel.",
        "source": "1272-128104-0000 of LibriSpeech dev-clean (V. Panayotov, G. Chen, D. Povey, "
        "S. Khudanpur, from a LibriVox recording), https://www.openslr.org/12",
        "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    },
]


def main(folder: Path) -> None:
    parts, times = [np.zeros(round(BEFORE_S * RATE))], list[list[float]]()
    for part in PARTS:
        audio, rate = soundfile.read(folder / part["file"])
        assert (rate, audio.ndim) == (RATE, 1), part["file"]
        audio *= LOUDNESS / np.sqrt(np.mean(audio**2))
        fade = np.linspace(0, 1, round(FADE_S * RATE))
        audio[: len(fade)] *= fade
        audio[-len(fade) :] *= fade[::-1]
        start = sum(map(len, parts)) / RATE
        parts += [audio, np.zeros(round(PAUSE_S * RATE))]
        times.append([round(start, 3), round(start + len(audio) / RATE, 3)])
    audio = np.concatenate(parts)
    audio += np.random.default_rng(1).standard_normal(len(audio)) * NOISE
    assert np.abs(audio).max() < 1
    soundfile.write(SAMPLES / "human.wav", audio, RATE, subtype="PCM_16")
    about = {
        "file": "human.wav",
        "language": "en",
        "voice": [part["voice"] for part in PARTS],
        "sentences": [part["text"] for part in PARTS],
        "times": times,
        "sources": [part["source"] for part in PARTS],
        "licences": [part["licence"] for part in PARTS],
    }
    (SAMPLES / "human.json").write_text(json.dumps([about], indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
