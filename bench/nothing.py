"""
What a checkpoint makes of sounds in which nobody speaks, and of words that are short: without a
server, and so without the VAD that keeps most of them from it.

    python bench/nothing.py BUILT_MODEL_REPOSITORY [--corpus FOLDER]

Each kind of sound (bench/noises.py) is cut into utterances of half a second to eight seconds, and
each should be answered without text; a final whose scores look bad is decoded again in a full
window, as when it is served. With a corpus also the rooms of its meetings while nobody speaks; and
the first moments of what is said in it, which should not be answered with nothing. Prints a
Markdown table, what was invented, and one JSON object last.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import corpus
import machine
import noises
from recordings import Pcm
from windows import Served

from dalston.triton.contract import SAMPLE_RATE

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds, in turn
FIRST = (0.6, 1.0, 2.0)  # seconds of what is said


def utterances(sound: Pcm) -> list[Pcm]:
    """The sound in pieces."""
    found, at = list[Pcm](), 0
    for length in cycle(LENGTHS):
        samples = round(length * SAMPLE_RATE)
        if at + samples > len(sound):
            return found
        found.append(sound[at : at + samples])
        at += samples
    return found


def beginnings(folder: Path) -> list[Pcm]:
    """Of each English utterance its first moments."""
    return [
        recording.audio[first : first + round(length * SAMPLE_RATE)]
        for recording in corpus.recordings(folder)
        for first in [round(recording.sentences[0].start * SAMPLE_RATE)]
        for length in FIRST
    ]


def texts(served: Served, audio: Sequence[Pcm]) -> list[str]:
    return [heard.text for heard in served.finals(audio)]


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--corpus", type=Path, help="a folder of speech with a manifest.json")
    parser.add_argument("--variant", default="fast", help="of the repository (fast)")
    parser.add_argument("--seconds", type=float, default=120, help="of each sound (120)")
    args = parser.parse_args()
    served = Served(args.repository, args.variant)
    found = dict[str, dict[str, int]]()
    invented = Counter[str]()
    print("| sound | utterances | with text |\n|---|---|---|")
    for name, sound in noises.noises(args.seconds, args.corpus).items():
        pieces = utterances(sound)
        said = [text for text in texts(served, pieces) if text]
        invented.update(said)
        found[name] = {"utterances": len(pieces), "with_text": len(said)}
        print(f"| {name} | {len(pieces)} | {len(said)} |", flush=True)
    lost = {}
    if args.corpus:
        pieces = beginnings(args.corpus)
        lost = {"utterances": len(pieces), "without_text": texts(served, pieces).count("")}
        print(f"\nShort speech: {lost['without_text']} of {lost['utterances']} without text.")
    for text, count in invented.most_common(20):
        print(f"{count} x {text!r}")
    about = {"machine": machine.described(), "commit": machine.commit()}
    print(json.dumps({"sounds": found, "short_speech": lost, **about}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
