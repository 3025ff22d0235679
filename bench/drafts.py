"""
Whether a final depends on what was heard before it, or on what is decoded beside it. No server.

    python bench/drafts.py BUILT_MODEL_REPOSITORY --corpus FOLDER [--variant VARIANT] [--every N]

Each utterance of the corpus is decoded alone and without a draft. Then with drafts: hypotheses of
its beginnings, its own tokens, the first of them, and nonsense. Then all of these mixed, in batches
of two to eight, each beside a partial with a prefix; short ones also with the language detected.
Tokens, scores and times have to be the same to the last bit. Prints a Markdown table; the exit
status is 1 if anything differs.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import corpus
from google.protobuf import text_format
from recordings import Pcm
from tritonclient.grpc import model_config_pb2

from dalston.triton.contract import LONGEST_AUDIO, SAMPLE_RATE, VARIANTS, whisper_model
from dalston.triton.whisper import Row, Transcript, Whisper

BATCHES = (2, 3, 5, 8)
EARLIER_S = (0.6, 1.4)  # the beginnings end so long before the end


def transcribed(whisper: Whisper, rows: Sequence[Row]) -> list[Transcript]:
    results = whisper.transcribe(rows)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [result for result in results if isinstance(result, Transcript)]


def drafted(whisper: Whisper, row: Row, found: Transcript, rng: random.Random) -> dict[str, Row]:
    """The same row with drafts, by what they are."""
    drafts = {"its own tokens": found.tokens}
    drafts["the first of them"] = found.tokens[: rng.randrange(len(found.tokens) + 1)]
    drafts["nonsense"] = [rng.choice([*found.tokens, 5]) for _ in range(40)]
    for earlier in EARLIER_S:
        begins = row.audio[: max(0, len(row.audio) - round(earlier * SAMPLE_RATE))]
        (heard,) = transcribed(whisper, [replace(row, audio=begins)])
        drafts[f"what was heard {earlier} s before"] = heard.tokens
    return {name: replace(row, draft=draft) for name, draft in drafts.items()}


def differing(
    whisper: Whisper, spoken: Sequence[tuple[Pcm, str]], seed: int = 1
) -> dict[str, tuple[int, int, float]]:
    """By how they were asked for: finals, those that were not the same, seconds of processor."""
    rng = random.Random(seed)
    rows = [
        Row(audio, language)
        for audio, language in spoken
        for language in (language, *(("auto",) if len(audio) < 8 * SAMPLE_RATE else ()))
    ]
    found = dict[str, tuple[int, int, float]]()

    def asked(name: str, rows: Sequence[Row], size: int, beside: Sequence[Row] = ()) -> None:
        order, differ, began = rng.sample(range(len(rows)), len(rows)), 0, time.process_time()
        for first in range(0, len(order), size):
            part = order[first : first + size]
            others = rng.sample(beside, min(1, len(beside)))
            results = transcribed(whisper, [*others, *(rows[index] for index in part)])
            told = zip(part, results[len(others) :], strict=True)
            differ += sum(alone[index] != one for index, one in told)
        found[name] = (len(rows), differ, time.process_time() - began)

    began = time.process_time()
    alone = [transcribed(whisper, [row])[0] for row in rows]
    found["alone"] = (len(rows), 0, time.process_time() - began)
    kinds = [drafted(whisper, row, one, rng) for row, one in zip(rows, alone, strict=True)]
    for name in kinds[0]:
        asked(name, [kind[name] for kind in kinds], 1)
    partials = [
        replace(row, prefix=one.tokens[: len(one.tokens) // 2])
        for row, one in zip(rows, alone, strict=True)
    ]
    for size in BATCHES:
        mixed = [rng.choice([row, *kind.values()]) for row, kind in zip(rows, kinds, strict=True)]
        asked(f"batches of {size}, with any of these", mixed, size, partials)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n")[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0])
    parser.add_argument("--every", type=int, default=1, help="of so many utterances one")
    args = parser.parse_args()
    folder = args.repository / whisper_model(args.variant)
    config = text_format.Parse(
        (folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig()
    )
    options = {key: value.string_value for key, value in config.parameters.items()}
    whisper = Whisper(
        folder / "1" / "checkpoint",
        compute_type=options["compute_type"],
        beam_size=int(options["beam_size"]),
        right_sized=options["windows"] == "right-sized",
        shortest_window=int(options["shortest_window"]),
        margin=float(options["margin"]),
        languages=options["languages"].split(),
    )
    spoken = [
        (item.audio, item.language if item.language in whisper.languages else "auto")
        for item in corpus.items(args.corpus)
        if len(item.audio) <= LONGEST_AUDIO
    ]
    found = differing(whisper, spoken[:: args.every])
    print("| asked for | finals | differ | processor |\n|---|---|---|---|")
    for name, (count, differ, seconds) in found.items():
        print(f"| {name} | {count} | {differ} | {seconds:.1f} s |")
    print(json.dumps(found))
    sys.exit(any(differ for _, differ, _ in found.values()))


if __name__ == "__main__":
    main()
