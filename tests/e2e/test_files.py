"""
Recorded audio against the whole stack with a real Whisper: the words are right, and they are the
same when a worker is killed in the middle.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import scoring
import soundfile
from support.stack import Stack, start_stack
from support.uploads import Answer, contained, form, post

_ROOT = Path(__file__).parents[2]
HUMAN = _ROOT / "demo" / "samples" / "human.wav"


@pytest.fixture(scope="module")
def real() -> Generator[Stack]:
    """Two workers, so that one can be lost, and Whisper base."""
    data_dir = _ROOT / "build" / "cpu"
    if not (data_dir / "model_repository" / "built.json").exists():
        pytest.fail(f"{data_dir} is not there: run `make test`, or `make install`")
    stack = start_stack(data_dir, 2, profile="cpu", MAX_SESSIONS="1")
    yield stack
    stack.process.send_signal(signal.SIGTERM)
    stack.process.wait(45)


def recording() -> tuple[str, npt.NDArray[np.int16], int]:
    """What three people said, and how it sounds."""
    (about,) = json.loads(HUMAN.with_suffix(".json").read_text("utf-8"))
    audio, rate = soundfile.read(HUMAN, dtype="int16")
    return " ".join(about["sentences"]), audio, rate


async def transcribe(stack: Stack, file: bytes, *fields: tuple[str, str]) -> Answer:
    body = form([("model", "whisper-1"), *fields], file)
    return await post(f"127.0.0.1:{stack.port}", "/v1/audio/transcriptions", body)


def worker_of(stack: Stack) -> psutil.Process:
    """That has the one session there is."""
    workers = stack.http("/v1/realtime/status")[1]["workers"]
    (busy,) = [worker["id"] for worker in workers if worker["active_sessions"]]
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("WORKER_ID") == busy:
                return process
    raise AssertionError(f"{busy} has no process")


async def test_the_words_are_right_and_a_killed_worker_changes_none(real: Stack) -> None:
    said, audio, rate = recording()
    file = contained(audio, rate, "ipod", "aac")
    verbose = ("response_format", "verbose_json")
    whole = await transcribe(real, file, verbose, ("timestamp_granularities[]", "word"))
    assert whole.status == 200, whole.body
    text: str = whole.json["text"]
    expected = scoring.words(said)
    assert scoring.errors(expected, scoring.words(text)) <= 0.1 * len(expected)
    assert whole.json["language"] == "english"
    assert whole.json["duration"] == pytest.approx(len(audio) / rate, abs=0.2)
    words: list[Any] = whole.json["words"]
    assert len(words) == len(text.split())
    assert all(a["start"] <= b["start"] for a, b in zip(words, words[1:], strict=False))

    long = contained(np.concatenate([audio, audio]), rate, "flac", "flac")
    undisturbed = await transcribe(real, long)
    asking = asyncio.create_task(transcribe(real, long))
    while real.held() == 0:
        await asyncio.sleep(0.02)
    os.kill(worker_of(real).pid, signal.SIGKILL)
    disturbed = await asking
    assert disturbed.status == 200, disturbed.body
    assert disturbed.json == undisturbed.json
    real.until_free()
