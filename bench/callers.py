"""
Callers: N sessions paced in real time, in a process of their own, and what each of them noticed.

    python bench/callers.py --url ws://127.0.0.1:8000 --streams 20 --seconds 30
    python bench/callers.py --url ws://127.0.0.1:8000 --alone --seconds 30
    python bench/callers.py --url ws://127.0.0.1:8000 --streams 4 --corpus FOLDER

Each caller reads a script aloud: the committed recordings in an order of its own, or the English
utterances of a corpus (bench/corpus.py), so every word and when it is spoken is known. There are
SCRIPTS of them; callers begin at moments of their own.
--alone plays every script once, one after the other and as fast as the server takes them: what
an undisturbed server makes of them, to compare with.

Prints one JSON object: a list of calls, and whether this process kept its own time.
"""

import argparse
import asyncio
import json
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import corpus
import flicker
from recordings import Recording, Sentence, recordings

from dalston import client
from dalston.orchestrator.transcription.agreement import spoken

RATE, CHUNK_S = 16_000, 0.1
SCRIPTS = 8
BEGIN_WITHIN_S = 3.0


@dataclass(frozen=True)
class Script:
    audio: bytes  # 16 kHz mono, int16
    sentences: tuple[Sentence, ...]

    @property
    def seconds(self) -> float:
        return len(self.audio) / 2 / RATE


@dataclass
class Call:
    """What one caller noticed; times are seconds."""

    script: int
    finals: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    # Of each sentence: from its true onset to its first text, from its true end to its final.
    first_text: list[float] = field(default_factory=list[float])
    after_speech: list[float] = field(default_factory=list[float])
    after_endpoint: list[float] = field(default_factory=list[float])  # vad.speech_end -> final
    partial_lag: list[float] = field(default_factory=list[float])  # audio sent and not yet shown
    partials: int = 0
    sentences: int = 0
    lost: int = 0  # sentences without a final
    doubled: int = 0  # finals told twice, or of the same audio
    stable_broken: int = 0  # partials that changed what was stable in the one before
    unstable_words: int = 0  # shown, and changed by the next partial or the final (flicker.py)
    rewritten_words: int = 0  # only with other capitals or marks
    words: int = 0  # of finals
    stats: dict[str, Any] = field(default_factory=dict[str, Any])
    failure: str = ""


@cache
def scripts(seconds: float, folder: Path | None = None) -> list[Script]:
    """Each at most so long. The same for the same length. folder: a corpus."""
    said = corpus.recordings(folder) if folder else recordings()
    return [_script(number, seconds, said) for number in range(SCRIPTS)]


def _script(number: int, seconds: float, said: Sequence[Recording]) -> Script:
    audio, sentences = bytearray(), list[Sentence]()
    order = random.Random(number)
    while True:
        for recording in order.sample(said, len(said)):
            at = len(audio) / 2 / RATE
            if at + len(recording.audio) / RATE > seconds and sentences:
                return Script(bytes(audio), tuple(sentences))
            audio += recording.audio.tobytes()
            sentences += [Sentence(s.text, at + s.start, at + s.end) for s in recording.sentences]


async def call(url: str, number: int, script: Script, paced: bool, late: list[float]) -> Call:
    """One session from its first frame to session.end."""
    seen = Call(number, sentences=len(script.sentences))
    try:
        # A break is counted, not mended.
        async with client.connect(url, resume=False, language="en") as session:
            clock = Clock()
            sending = asyncio.create_task(_send(session, script.audio, paced, clock, late))
            listener = Listener(seen, script, clock)
            try:
                async for event in session:
                    listener.hear(event)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            listener.count()
    except (client.SessionFailed, OSError) as error:
        seen.failure = str(error) or type(error).__name__
    return seen


@dataclass
class Clock:
    began: float = 0.0
    sent: float = 0.0  # seconds of audio


async def _send(
    session: client.Session, audio: bytes, paced: bool, clock: Clock, late: list[float]
) -> None:
    clock.began = time.perf_counter()
    step = 2 * int(RATE * CHUNK_S)
    for index, at in enumerate(range(0, len(audio), step), 1):
        # A microphone hands over a chunk when its last sample was heard.
        due = clock.began + index * CHUNK_S
        if paced:
            await asyncio.sleep(due - time.perf_counter())
            late.append(time.perf_counter() - due)
        await session.send(audio[at : at + step])
        clock.sent = index * CHUNK_S
    await session.end()


class Listener:
    """Notes what the events of one call mean."""

    def __init__(self, seen: Call, script: Script, clock: Clock | None = None):
        self._seen, self._script, self._clock = seen, script, clock or Clock()
        self._partial: client.Event | None = None  # the last, of the utterance that is open
        self._decided: dict[float, float] = {}  # vad.speech_end timestamp -> arrival
        # Arrival, start, end: of what has text, and of finals alone.
        self._texts: list[tuple[float, float, float]] = []
        self._told: list[tuple[float, float, float]] = []

    def hear(self, event: client.Event) -> None:
        now = time.perf_counter() - self._clock.began
        match event["type"]:
            case "transcript.partial":
                self._texts.append((now, event["start"], event["end"]))
                self._seen.partials += 1
                self._seen.partial_lag.append(self._clock.sent - event["end"])
                if self._partial and self._partial["segment_id"] != event["segment_id"]:
                    self._compare(None)
                self._compare(event)
                self._partial = event
            case "vad.speech_end":
                self._decided[event["timestamp"]] = now
            case "transcript.final":
                self._texts.append((now, event["start"], event["end"]))
                self._compare(event)
                self._partial = None
                self._final(now, event)
            case "session.end":
                self._compare(None)
                self._seen.stats = event["stats"]
            case _:
                pass

    def _compare(self, event: client.Event | None) -> None:
        """With what was shown of the same utterance before. None: it said nothing in the end."""
        before = self._partial
        if before is None:
            return
        if event is None:
            self._seen.unstable_words += flicker.changed(before["text"], "")[0]
            self._partial = None
            return
        if before["segment_id"] != event["segment_id"]:
            return
        stable = before["text"][: before["stable_chars"]]
        if event["type"] == "transcript.partial" and not event["text"].startswith(stable):
            self._seen.stable_broken += 1
        changed, rewritten = flicker.changed(before["text"], event["text"])
        self._seen.unstable_words += changed
        self._seen.rewritten_words += rewritten

    def _final(self, now: float, event: client.Event) -> None:
        known = {"segment_id", "text", "start", "end"}
        if any(
            event["segment_id"] == final["segment_id"] or event["start"] < final["end"] - 1e-3
            for final in self._seen.finals
        ):
            self._seen.doubled += 1
        self._seen.finals.append({key: event[key] for key in known})
        self._seen.words += len(spoken(event["text"]))
        if event["end"] in self._decided:
            self._seen.after_endpoint.append(now - self._decided[event["end"]])
        self._told.append((now, event["start"], event["end"]))

    def count(self) -> None:
        """What was shown of each sentence, now that all has been told."""
        for sentence in self._script.sentences:
            told = [at for at, start, end in self._told if _overlap(sentence, start, end)]
            self._seen.lost += not told
            if told:  # who pauses in a sentence gets two finals of it
                self._seen.after_speech.append(max(told) - sentence.end)
            shown = [at for at, start, end in self._texts if _overlap(sentence, start, end)]
            if shown:
                self._seen.first_text.append(min(shown) - sentence.start)


def _overlap(sentence: Sentence, start: float, end: float) -> bool:
    return min(sentence.end, end) - max(sentence.start, start) > 0.1


async def many(
    url: str, streams: int, every: Sequence[Script], lasting_s: float = 0.0
) -> tuple[list[Call], list[float]]:
    """So many callers at once; each makes one call, or calls as long as lasting_s is not over."""
    late = list[float]()
    until = time.monotonic() + lasting_s

    async def one(index: int) -> list[Call]:
        number, rng, made = index % SCRIPTS, random.Random(index), list[Call]()
        while not made or time.monotonic() < until:
            await asyncio.sleep(rng.uniform(0, BEGIN_WITHIN_S))
            made.append(await call(url, number, every[number], True, late))
            number = rng.randrange(SCRIPTS)
        return made

    return [seen for made in await asyncio.gather(*map(one, range(streams))) for seen in made], late


async def alone(url: str, every: Sequence[Script]) -> tuple[list[Call], list[float]]:
    calls = [await call(url, number, script, False, []) for number, script in enumerate(every)]
    return calls, []


def print_calls(calls: Sequence[Any], late: list[float], began: float) -> None:
    """What came of a process of callers, as JSON. calls: dataclasses; began: this process."""
    elapsed, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "calls": [asdict(seen) for seen in calls],
        "late": late,
        "elapsed_s": elapsed,
        "core_percent": 100 * (used.ru_utime + used.ru_stime) / elapsed,
    }
    print(json.dumps(result))


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each call (30)")
    parser.add_argument("--corpus", type=Path, help="whose utterances are said")
    parser.add_argument("--lasting", type=float, default=0.0, help="seconds of call after call")
    parser.add_argument("--alone", action="store_true", help="every script once, unpaced")
    args = parser.parse_args()
    every = scripts(args.seconds, args.corpus)
    began = time.perf_counter()
    if args.alone:
        calls, late = asyncio.run(alone(args.url, every))
    else:
        calls, late = asyncio.run(many(args.url, args.streams, every, args.lasting))
    print_calls(calls, late, began)


if __name__ == "__main__":
    main()
