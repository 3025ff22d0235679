"""
What the live server makes of human speech, beside faster-whisper with the same checkpoint offline.

    python bench/quality.py --corpus FOLDER --profile cpu
    python bench/quality.py --corpus FOLDER --checkpoint fast=FOLDER --stock FOLDER
    python bench/quality.py --corpus FOLDER --variant accurate --noise 10

The corpus: a folder as bench/corpus.py says. Live is the whole stack, its files streamed over the
WebSocket faster than real time by some callers at once: finals depend on the audio alone. Offline
is the same checkpoint (--stock: where what is served was changed for short windows, the weights it
was made of), every window 30 s, with the same number of beams; in an environment of its own. Its
answers are kept in build/bench/quality, for it always gives the same.

--ask min_silence_duration_ms=1500: with these parameters of the stream.
--telephone: the utterances also as a telephone carries them. --noise MINUTES: also so much of
every sound without a word, in real time, of which there should be no text at all.

What is counted, and how, stands in docs/quality.md. Tables in Markdown are printed, progress goes
to standard error, what was heard of every file to build/bench/quality; one JSON object comes last.
"""

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import corpus
import environments
import machine
import numpy as np
import served
from corpus import Item
from noises import noises
from quality_tables import Heard, Pair, console, report
from recordings import Pcm
from scoring import Word

from dalston import client
from dalston.cli.models import Choice
from dalston.triton import models, sources
from dalston.triton.contract import SAMPLE_RATE, VARIANTS
from dalston.triton.process import dies_with_us

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "build" / "bench"
KEPT = FOLDER / "quality"
FASTER_WHISPER = "faster-whisper==1.2.1"
CALLERS = 8  # at once: as many as keep two cores busy
CHUNK_S = 0.1
FULL_S = 30.0


# --- live ---------------------------------------------------------------------------------------


async def call(url: str, item: Item, variant: str, asked: Mapping[str, str]) -> Heard:
    """One session, as fast as the server takes it. asked: parameters of the stream."""
    finals, windows_s = list[dict[str, Any]](), 0.0
    settings: dict[str, Any] = {"language": item.language, "model": variant, **asked}
    settings |= {"interim_results": False, "word_timestamps": bool(item.timed)}
    try:
        async with client.connect(url, resume=False, **settings) as session:
            sending = asyncio.create_task(_send(session, item.audio, paced=False))
            try:
                async for event in session:
                    if event["type"] == "transcript.final":
                        finals.append(event)
                    elif event["type"] == "session.end":
                        windows_s = event["stats"]["final_window_seconds"]
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except client.SessionFailed as error:
        unknown = bool(error.error) and error.error["code"] == "language_unsupported"
        return Heard("", failure=str(error), unknown=unknown)
    words = [
        Word(word["word"], word["start"], word["end"])
        for final in finals
        for word in final.get("words") or ()
    ]
    return Heard(" ".join(final["text"] for final in finals), tuple(words), windows_s)


async def _send(session: client.Session, audio: Pcm, paced: bool) -> None:
    data, step = audio.astype("<i2").tobytes(), 2 * round(CHUNK_S * SAMPLE_RATE)
    began = asyncio.get_running_loop().time()
    for index, at in enumerate(range(0, len(data), step), 1):
        if paced:
            await asyncio.sleep(began + index * CHUNK_S - asyncio.get_running_loop().time())
        await session.send(data[at : at + step])
    await session.end()


async def live(
    url: str, items: Sequence[Item], variant: str, callers: int, asked: Mapping[str, str]
) -> list[Heard]:
    """Each item in a session of its own, the longest first; in the order of items."""
    slots, done = asyncio.Semaphore(callers), 0

    async def one(item: Item) -> Heard:
        nonlocal done
        async with slots:
            heard = await call(url, item, variant, asked)
            done += 1
            print(f"\rlive: {done} of {len(items)}  ", end="", file=sys.stderr)
            return heard

    order = sorted(range(len(items)), key=lambda index: -len(items[index].audio))
    heard = dict(zip(order, await asyncio.gather(*(one(items[i]) for i in order)), strict=True))
    print(file=sys.stderr)
    return [heard[index] for index in range(len(items))]


# --- offline ------------------------------------------------------------------------------------


def offline(items: Sequence[Item], checkpoint: Path, beam_size: int, home: Path) -> list[Heard]:
    """By faster-whisper, in the order of items; what it said before is not asked again."""
    with (checkpoint / "model.bin").open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()

    def key(item: Item) -> str:
        asked = f"{FASTER_WHISPER} {weights} {beam_size} {item.language} {bool(item.timed)} "
        return hashlib.sha256(asked.encode() + item.audio.tobytes()).hexdigest()

    kept = KEPT / "offline.json"
    answers: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    new = {key(item): item for item in items if key(item) not in answers}
    told = _faster_whisper(list(new.values()), checkpoint, beam_size, home) if new else ()
    for asked, answer in zip(new, told, strict=True):
        answers[asked] = answer
        kept.write_text(json.dumps(answers))
    found = list[Heard]()
    for item in items:
        answer = answers[key(item)]
        words = tuple(Word(**word) for word in answer["words"])
        found.append(Heard(answer["text"], words, answer["window_seconds"]))
    return found


def _faster_whisper(
    items: Sequence[Item], checkpoint: Path, beam_size: int, home: Path
) -> Iterator[dict[str, Any]]:
    environment = home / "faster-whisper"
    requirements = (FASTER_WHISPER, f"ctranslate2=={_version('ctranslate2')}")
    environments.install(environment, requirements, console.print, size="a hundred megabytes")
    audio = KEPT / "audio"
    audio.mkdir(exist_ok=True)
    jobs = list[str]()
    for index, item in enumerate(items):
        path = audio / f"{index}.npy"
        np.save(path, item.audio)
        job = {"audio": str(path), "language": item.language, "words": bool(item.timed)}
        jobs.append(json.dumps(job) + "\n")
    cores = str(machine.described()["cores"])
    command = [str(HERE / "offline.py"), str(checkpoint), str(beam_size), cores]
    process = subprocess.Popen(
        dies_with_us([str(environment / "bin" / "python"), *command]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    for number, job in enumerate(jobs, 1):
        process.stdin.write(job)
        process.stdin.flush()
        yield json.loads(process.stdout.readline())
        print(f"\roffline: {number} of {len(jobs)}  ", end="", file=sys.stderr)
    print(file=sys.stderr)
    process.stdin.close()
    process.wait()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


# --- nothing ------------------------------------------------------------------------------------


@dataclass
class Nothing:
    """What was made of a sound without a word."""

    minutes: float
    taken_for_speech_s: float = 0.0
    partials: int = 0
    finals: int = 0
    texts: list[str] | None = None  # of the finals and of partials that none followed
    failure: str = ""


async def listen(url: str, audio: Pcm, variant: str, language: str) -> Nothing:
    """In real time, as a microphone that is open."""
    seen = Nothing(round(len(audio) / SAMPLE_RATE / 60, 2))
    texts = dict[str, str]()
    settings: dict[str, Any] = {"language": language, "model": variant}
    try:
        async with client.connect(url, resume=False, **settings) as session:
            sending = asyncio.create_task(_send(session, audio, paced=True))
            try:
                async for event in session:
                    if event["type"] in ("transcript.partial", "transcript.final"):
                        texts[event["segment_id"]] = event["text"]
                        seen.partials += event["type"] == "transcript.partial"
                        seen.finals += event["type"] == "transcript.final"
                    elif event["type"] == "session.end":
                        seen.taken_for_speech_s = event["total_speech_duration"]
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except client.SessionFailed as error:
        seen.failure = str(error)
    seen.texts = list(texts.values())
    return seen


async def nothing(
    url: str, minutes: float, folder: Path, variant: str
) -> dict[str, dict[str, Any]]:
    """All sounds at once, each twice: by a caller who says that it is English, and by one who
    leaves the language to the server."""
    sounds = {
        f"{name}, {language}": listen(url, audio, variant, language)
        for name, audio in noises(60 * minutes, folder).items()
        for language in ("en", "auto")
    }
    console.print(f"{len(sounds)} sounds without a word: {minutes:g} minutes")
    seen = await asyncio.gather(*sounds.values())
    return {name: asdict(one) for name, one in zip(sounds, seen, strict=True)}


def nothing_table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| sound, language | minutes | taken for speech | partials | finals | texts |",
        "|---|" + "---:|" * 4 + "---|",
    ]
    for name, seen in found.items():
        texts = seen["failure"] or "; ".join(f"“{text}”" for text in seen["texts"][:3])
        lines.append(
            f"| {name} | {seen['minutes']:g} | {seen['taken_for_speech_s']:.1f} s |"
            f" {seen['partials']} | {seen['finals']} | {texts} |"
        )
    return "\n".join(lines)


# --- all of it ----------------------------------------------------------------------------------


async def measured(
    args: argparse.Namespace, items: Sequence[Item], name: str, choice: Choice
) -> tuple[list[Heard], dict[str, dict[str, Any]]]:
    """What the live server heard of the items, and of nothing."""
    # Files come faster than anybody speaks: that they are late is no reason to end them.
    os.environ["DALSTON_LAG_LIMIT_SECONDS"] = "3600"
    async with served.running(FOLDER, name, 64, choice=choice) as stack:
        heard, silence = list[Heard](), dict[str, dict[str, Any]]()
        if not args.noise_only:
            heard = await live(stack.url, items, args.variant, args.callers, dict(args.ask))
            by_name = {named(item): asdict(one) for item, one in zip(items, heard, strict=True)}
            last_heard(name, args.variant).write_text(json.dumps(by_name))
        if args.noise:
            silence = await nothing(stack.url, args.noise, args.corpus, args.variant)
        return heard, silence


def named(item: Item) -> str:
    return f"{item.part}: {item.name}"


def last_heard(name: str, variant: str) -> Path:
    return KEPT / f"{name}.{variant}.live.json"


def remembered(items: Sequence[Item], kept: Path) -> list[tuple[Item, Heard]]:
    """Of those items that the last run heard."""
    by_name: dict[str, dict[str, Any]] = json.loads(kept.read_text())
    found = list[tuple[Item, Heard]]()
    for item in items:
        if one := by_name.get(named(item)):
            words = tuple(Word(**word) for word in one["words"])
            found.append((item, replace(Heard(**one), words=words)))
    return found


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument(
        "--corpus", type=Path, required=True, help="bench/corpus.py says what is in it"
    )
    parser.add_argument("--profile", default="cpu", help="of dalston models (cpu)")
    parser.add_argument("--checkpoint", metavar="[VARIANT=]FOLDER", help="instead of the profile's")
    parser.add_argument("--stock", type=Path, help="offline, instead of the same checkpoint")
    parser.add_argument("--variant", choices=VARIANTS, default="fast")
    parser.add_argument(
        "--ask",
        type=_parameter,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of each stream, such as min_silence_duration_ms=1500",
    )
    parser.add_argument("--callers", type=int, default=CALLERS, help=f"at once ({CALLERS})")
    parser.add_argument("--parts", nargs="+", help="these alone")
    parser.add_argument("--telephone", action="store_true", help="the utterances so too")
    parser.add_argument("--noise", type=float, default=0.0, metavar="MINUTES", help="of each sound")
    parser.add_argument("--noise-only", action="store_true", help="and no speech")
    parser.add_argument("--again", action="store_true", help="judge what was heard last time")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "dalston-bench"
    )
    args = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    name, choice = served.chosen(args.profile, args.checkpoint)
    items = [*corpus.items(args.corpus), *corpus.together(args.corpus)]
    if args.telephone:
        spoken = [item for item in items if item.text and not item.timed]
        items += [replace(corpus.telephone(item), part="telephone") for item in spoken]
    items = [item for item in items if not args.parts or item.part in args.parts]
    if args.again:
        pairs = remembered(items, last_heard(name, args.variant))
        items, heard, silence = [item for item, _ in pairs], [one for _, one in pairs], {}
    else:
        heard, silence = asyncio.run(measured(args, items, name, choice))
    result: dict[str, Any] = {"checkpoint": name, "variant": args.variant, "asked": dict(args.ask)}
    if heard:
        items, heard = _known(items, heard)
        model = models.profiles()[args.profile][args.variant]
        stock = args.stock or _stock(args.checkpoint, model.checkpoint)
        reference = offline(items, stock, model.beam_size, args.environments)
        pairs = [Pair(*three) for three in zip(items, heard, reference, strict=True)]
        result |= report(pairs)
        with (KEPT / f"{name}.{args.variant}.jsonl").open("w") as out:
            for pair in pairs:
                said = {"file": pair.item.name, "text": pair.item.text}
                texts = {"live": pair.live.text, "offline": pair.offline.text}
                out.write(json.dumps(said | texts, ensure_ascii=False) + "\n")
    if silence:
        print(nothing_table(silence) + "\n")
        result["nothing"] = silence
    where = {"machine": machine.described(), "commit": machine.commit()}
    print(json.dumps({**result, "offline": FASTER_WHISPER, **where}))
    return 0


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _known(items: Sequence[Item], heard: Sequence[Heard]) -> tuple[list[Item], list[Heard]]:
    """Those in a language that the checkpoint knows."""
    known = [(item, h) for item, h in zip(items, heard, strict=True) if not h.unknown]
    return [item for item, _ in known], [h for _, h in known]


def _stock(checkpoint: str | None, of_profile: models.Checkpoint) -> Path:
    return Path(checkpoint.rpartition("=")[2]) if checkpoint else sources.fetch(of_profile)


if __name__ == "__main__":
    sys.exit(main())
