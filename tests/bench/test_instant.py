"""
What stands in Triton's place answers as a worker expects.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import instant
import numpy as np
import pytest

from dalston.orchestrator.inference.triton_client import (
    InferenceError,
    Triton,
    speech_probabilities,
)
from dalston.orchestrator.transcription.model_requests import SpeechRequest, TranscriptRequest
from dalston.triton.contract import VAD_FRAME
from dalston.triton.process import free_port


@pytest.fixture
async def triton() -> AsyncGenerator[Triton]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(instant.__file__)), str(port)
    )
    client = Triton(f"127.0.0.1:{port}")
    for _ in range(100):
        try:
            await client.variants()
            break
        except InferenceError:
            await asyncio.sleep(0.1)
    yield client
    await client.close()
    process.kill()
    await process.wait()


async def test_what_is_loud_is_speech(triton: Triton) -> None:
    loud = np.tile(np.array([3000, -3000], np.int16), VAD_FRAME)
    quiet = np.zeros(VAD_FRAME, np.int16)
    request = SpeechRequest("s.1.0", np.concatenate([loud, quiet]).tobytes(), start=True)
    found = await speech_probabilities(triton.request_speech, request)
    assert [probability > 0.5 for probability in found] == [True, True, False]


async def test_every_transcript_is_the_same(triton: Triton) -> None:
    partial = TranscriptRequest(1, "partial", bytes(6400), "en", "fast")
    final = TranscriptRequest(2, "final", bytes(6400), "en", "fast", words=True)
    one, other = await triton.transcribe(partial), await triton.transcribe(final)
    assert one.text == other.text == "and that is what it is"
    assert len(one.tokens) == len(one.token_ends) == 6
