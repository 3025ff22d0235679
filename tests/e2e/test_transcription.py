"""
Real audio through gateway, worker and Triton, and what comes back.
"""

import asyncio
from typing import Any

import numpy as np
import pytest
from recordings import Recording, foreign, recordings
from scoring import wer
from support.sounds import converted
from support.stack import Stack

from dalston import client
from dalston.orchestrator.protocol.messages import Encoding
from dalston.triton.contract import STAGES

WORDS_S = 0.1  # how far a word may start from where it was spoken, in the median


async def transcribe(
    url: str, audio: bytes, sizes: list[int], pace_s: float = 0.0, **parameters: Any
) -> list[client.Event]:
    """All events of a session with this audio, in frames of these sizes over and over."""
    async with client.connect(url, **parameters) as session:

        async def send() -> None:
            at = index = 0
            while at < len(audio):
                size = sizes[index % len(sizes)]
                await session.send(audio[at : at + size])
                at, index = at + size, index + 1
                await asyncio.sleep(pace_s)
            await session.end()

        sending = asyncio.create_task(send())
        events = [event async for event in session]
        await sending
        return events


def told(events: list[client.Event]) -> list[client.Event]:
    """All that must not depend on timing."""
    kept: list[client.Event] = []
    for event in events:
        if event["type"] == "transcript.partial":
            continue
        volatile = ("session_id", "stats", "processing_ms", "wall_seconds")
        kept.append({key: value for key, value in event.items() if key not in volatile})
    return kept


def transcript(events: list[client.Event]) -> str:
    return events[-1]["transcript"]


def said(recording: Recording) -> str:
    return " ".join(sentence.text for sentence in recording.sentences)


async def in_turn(jobs: list[Any], at_once: int = 4) -> list[Any]:
    """As many at once as there are slots."""
    slots = asyncio.Semaphore(at_once)

    async def one(job: Any) -> Any:
        async with slots:
            return await job

    return await asyncio.gather(*map(one, jobs))


# 000-01, 000-02, 000-47, 003-27
@pytest.mark.timeout(180)
async def test_the_committed_recordings_are_understood(stack: Stack) -> None:
    """Four at a time at real-time pace; the last three are voices that training never heard."""
    jobs = [transcribe(stack.url, r.audio.tobytes(), [3200], 0.1) for r in recordings()]
    results = await in_turn(jobs)
    pairs = [(said(r), transcript(events)) for r, events in zip(recordings(), results, strict=True)]
    assert wer(pairs) <= 0.06, pairs
    for events in results:
        stats = events[-1]["stats"]
        spoken = events[-1]["total_speech_duration"]
        assert stats["partials"] >= spoken, "at least one partial for each second of speech"
        assert stats["finals"] == len(events[-1]["segments"])
        spent = stats["final_stages_ms"]
        assert set(spent) == {"buffering", "vad", "queue", *STAGES, "assembly", "serialisation"}
        assert all(spent[stage] > 0 for stage in ("buffering", "vad", "encode", "decode"))


# 000-43, 001-13
async def test_words_stand_where_they_were_spoken(stack: Stack) -> None:
    recording = recordings()[0]
    events = await transcribe(
        stack.url, recording.audio.tobytes(), [3200], word_timestamps=True, language="en"
    )
    finals = [event for event in events if event["type"] == "transcript.final"]
    assert len(finals) == len(recording.sentences)
    for final, sentence in zip(finals, recording.sentences, strict=True):
        assert final["words"][0]["start"] == pytest.approx(sentence.start, abs=0.25)
        times = [time for word in final["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)
        assert final["start"] <= times[0]
        assert times[-1] <= final["end"]
        assert " ".join(word["word"] for word in final["words"]) == final["text"]


CHUNKINGS = {
    "20 ms": [640],
    "100 ms": [3200],
    "1 s": [32_000],
    "odd": [641, 3, 12_345, 1, 999],
    "random": np.random.default_rng(5).integers(1, 60_000, 40).tolist(),
}


# 001-11, 002-06
async def test_every_chunking_gives_identical_messages(stack: Stack) -> None:
    audio = recordings()[3].audio.tobytes()
    jobs = [transcribe(stack.url, audio, sizes, language="en") for sizes in CHUNKINGS.values()]
    first, *others = [told(events) for events in await in_turn(jobs)]
    for name, other in zip(list(CHUNKINGS)[1:], others, strict=True):
        assert other == first, name


FORMATS: list[tuple[int, Encoding]] = [
    (8_000, "pcm_s16le"),
    (24_000, "pcm_s16le"),
    (48_000, "pcm_s16le"),
    (16_000, "pcm_f32le"),
    (16_000, "mulaw"),
    (16_000, "alaw"),
    (8_000, "mulaw"),
]


# L-01
@pytest.mark.timeout(240)
async def test_every_rate_and_encoding_is_understood_alike(stack: Stack) -> None:
    """The same words on the bundled recording, and WER within one point on all."""

    async def heard(rate: int, encoding: Encoding) -> list[str]:
        jobs = [
            transcribe(
                stack.url,
                converted(recording.audio, rate, encoding),
                [rate],
                sample_rate=rate,
                encoding=encoding,
                interim_results=False,
            )
            for recording in recordings()
        ]
        return [transcript(events) for events in await in_turn(jobs)]

    texts = [said(recording) for recording in recordings()]
    usual = await heard(16_000, "pcm_s16le")
    usual_wer = wer(list(zip(texts, usual, strict=True)))
    for rate, encoding in FORMATS:
        other = await heard(rate, encoding)
        assert other[0] == usual[0], (rate, encoding)
        other_wer = wer(list(zip(texts, other, strict=True)))
        assert abs(other_wer - usual_wer) <= 0.01, (rate, encoding, other_wer, usual_wer)


async def test_stereo_is_mixed_down(stack: Stack) -> None:
    pcm = recordings()[0].audio
    both = np.repeat(pcm, 2).tobytes()
    mono, stereo = await in_turn(
        [
            transcribe(stack.url, pcm.tobytes(), [3200], language="en"),
            transcribe(stack.url, both, [6400], language="en", channels=2),
        ]
    )
    assert transcript(stereo) == transcript(mono)


# 002-11, 003-21, K-02
async def test_both_variants_serve(stack: Stack) -> None:
    events = await transcribe(
        stack.url, recordings()[0].audio.tobytes(), [16_000], model="accurate", language="en"
    )
    assert events[0]["config"]["model"] == "accurate"
    assert wer([(said(recordings()[0]), transcript(events))]) <= 0.1


async def test_the_language_is_found_and_the_words_are_understood_in_it(stack: Stack) -> None:
    """Voices that training never heard."""
    jobs = [transcribe(stack.url, r.audio.tobytes(), [16_000]) for r in foreign()]
    results = await in_turn(jobs)
    for recording, events in zip(foreign(), results, strict=True):
        finals = [event for event in events if event["type"] == "transcript.final"]
        assert {final["language"] for final in finals} == {recording.language}
        assert len(finals) == len(recording.sentences)
    pairs = [(said(r), transcript(events)) for r, events in zip(foreign(), results, strict=True)]
    assert wer(pairs, "mul") <= 0.2, pairs


# 004-20
async def test_a_minute_without_a_pause_is_cut_and_joined(stack: Stack) -> None:
    """Sentences with no silence that an endpoint could fall into."""
    gap = np.zeros(3_200, np.int16)
    sentences = [(r, s) for r in recordings()[:6] for s in r.sentences]
    parts = [part for r, s in sentences for part in (r.cut(s)[4_000:-4_000], gap)]
    texts = [s.text for _, s in sentences]
    audio = np.concatenate(parts)
    assert len(audio) > 31 * 16_000
    events = await transcribe(
        stack.url, audio.tobytes(), [3200], language="en", min_silence_duration_ms=2000
    )
    ends = [e["timestamp"] for e in events if e["type"] == "vad.speech_end"]
    starts = [e["timestamp"] for e in events if e["type"] == "vad.speech_start"]
    assert len(ends) >= 2
    assert ends[0] == starts[1]
    # "mul": Whisper's English normaliser makes one word of a string of digits.
    assert wer([(" ".join(texts), transcript(events))], "mul") <= 0.2


@pytest.mark.parametrize("kind", ["silence", "noise", "tones"])
async def test_a_minute_of_nothing_has_no_text(stack: Stack, kind: str) -> None:
    r, n = np.random.default_rng(11), 60 * 16_000
    t = np.arange(n) / 16_000
    if kind == "silence":
        audio = np.zeros(n)
    elif kind == "noise":
        audio = np.cumsum(r.standard_normal(n)) * 0.0005 + r.standard_normal(n) * 0.02
        audio -= np.convolve(audio, np.ones(800) / 800, "same")
    else:  # chords with an envelope, as music has
        audio = np.zeros(n)
        for f, p in ((196, 1.1), (247, 1.7), (294, 0.7), (392, 2.3), (587, 0.5)):
            audio += 0.08 * np.sin(2 * np.pi * f * t) * np.exp(-3 * (t % p))
    pcm = np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
    events = await transcribe(stack.url, pcm, [32_000])
    assert transcript(events) == ""
    assert not [e for e in events if e["type"].startswith("transcript.")]
