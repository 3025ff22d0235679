import asyncio
import json
import urllib.request
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from instant import serving
from recordings import spoken
from support.small_triton import SmallTriton, start

from dalston.orchestrator.inference import triton_client
from dalston.orchestrator.inference.triton_client import (
    InferenceError,
    SpeechAnswer,
    Triton,
)
from dalston.orchestrator.transcription.model_requests import TranscriptRequest
from dalston.triton.contract import VARIANTS, Variant


@pytest.fixture
async def triton(triton_url: str) -> AsyncGenerator[Triton]:
    triton = Triton(triton_url)
    await triton.variants()
    yield triton
    await triton.close()


def request(
    kind: Literal["partial", "final"],
    variant: Variant,
    audio: bytes = bytes(32_000),
    language: str = "en",
) -> TranscriptRequest:
    return TranscriptRequest(1, kind, audio, language, variant, words=kind == "final")


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_final_overtakes_the_partials_that_wait(triton: Triton, variant: Variant):
    audio = max(spoken(), key=len).astype(np.int16).tobytes()
    waiting = 40
    partials = [
        asyncio.ensure_future(triton.transcribe(request("partial", variant, audio)))
        for _ in range(waiting)
    ]
    await asyncio.wait(partials, return_when=asyncio.FIRST_COMPLETED)
    done_before = sum(partial.done() for partial in partials)
    await triton.transcribe(request("final", variant, audio))
    overtaken = waiting - sum(partial.done() for partial in partials)
    assert done_before <= (await triton.variants())[variant].partials_in_flight
    assert overtaken >= waiting // 2
    # None of them is lost for it.
    texts = {hypothesis.text for hypothesis in await asyncio.gather(*partials)}
    assert len(texts) == 1


async def test_a_final_overtakes_first_partials_too_when_there_are_too_many(triton: Triton):
    audio = max(spoken(), key=len).astype(np.int16).tobytes()
    asked = 10 * (await triton.variants())["fast"].partials_in_flight
    urgent = replace(request("partial", "fast", audio), urgent=True)
    partials = [asyncio.ensure_future(triton.transcribe(urgent)) for _ in range(asked)]
    await asyncio.sleep(0)
    await triton.transcribe(request("final", "fast", audio))
    assert sum(not partial.done() for partial in partials) >= asked // 3
    assert len({hypothesis.text for hypothesis in await asyncio.gather(*partials)}) == 1


async def test_a_partial_that_is_cancelled_gives_its_place_to_the_next(triton: Triton):
    audio = max(spoken(), key=len).astype(np.int16).tobytes()
    for _ in range(20):
        partials = [
            asyncio.ensure_future(triton.transcribe(request("partial", "fast", audio)))
            for _ in range(10)
        ]
        await asyncio.sleep(0)
        for partial in partials:
            partial.cancel()
        await asyncio.gather(*partials, return_exceptions=True)
    async with asyncio.timeout(30):
        await triton.transcribe(request("partial", "fast", audio))


async def test_a_request_that_nobody_waits_for_any_more_is_answered_all_the_same(
    triton: Triton, triton_url: str
):
    def page() -> Any:
        url = f"http://{triton_url}/v2/models/whisper_accurate/stats"
        with urllib.request.urlopen(url, timeout=5) as response:
            return json.load(response)

    async def answered() -> int:
        (stats,) = (await asyncio.to_thread(page))["model_stats"]
        return stats["inference_stats"]["success"]["count"]

    audio = max(spoken(), key=len).astype(np.int16).tobytes()
    before, asked = await answered(), 4
    finals = [
        asyncio.ensure_future(triton.transcribe(request("final", "accurate", audio)))
        for _ in range(asked)
    ]
    await asyncio.sleep(0.02)
    for final in finals:
        final.cancel()
    assert all(final.cancelled() or final.cancelling() for final in finals)
    async with asyncio.timeout(30):
        while await answered() < before + asked:
            await asyncio.sleep(0.05)


async def test_the_answer_tells_what_the_encoder_saw(triton: Triton):
    for kind in ("partial", "final"):
        hypothesis = await triton.transcribe(request(kind, "fast", bytes(5 * 32_000)))
        assert hypothesis.window_seconds == 6


async def test_a_request_that_can_never_succeed_is_told_from_one_that_may(triton: Triton):
    with pytest.raises(InferenceError, match="language 'xx'") as refused:
        await triton.transcribe(request("final", "fast", language="xx"))
    assert not refused.value.retryable


async def test_a_triton_that_is_not_there_may_be_asked_again():
    nobody = Triton("127.0.0.1:9")
    with pytest.raises(InferenceError) as refused:
        await nobody.variants()
    assert refused.value.retryable
    await nobody.close()


async def test_questions_to_the_vad_that_come_close_together_leave_together(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(triton_client, "SPEECH_EVERY_S", 0.5)
    small, heard = SmallTriton(), list[SpeechAnswer]()
    async with serving(small) as port:
        triton = Triton(f"127.0.0.1:{port}")
        for sequence in ("first", "second", "third", "fourth"):
            triton.request_speech(start(sequence), heard.append)
            await asyncio.sleep(0.02)
        # The first waits for nobody, the others for each other, and none is lost.
        assert small.sequences == [("first", "start")]
        async with asyncio.timeout(5):
            while len(heard) < 4:
                await asyncio.sleep(0.01)
        assert sorted(small.sequences[1:]) == [(n, "start") for n in ("fourth", "second", "third")]
        await asyncio.sleep(0.6)
        triton.request_speech(start("fifth"), heard.append)
        await asyncio.sleep(0.1)
        assert len(heard) == 5
        await triton.close()


async def test_questions_to_the_vad_that_have_not_left_end_with_the_worker(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(triton_client, "SPEECH_EVERY_S", 0.2)
    small, heard = SmallTriton(), list[SpeechAnswer]()
    async with serving(small) as port:
        triton = Triton(f"127.0.0.1:{port}")
        triton.request_speech(start("first"), heard.append)
        await asyncio.sleep(0.05)
        triton.request_speech(start("second"), heard.append)
        await asyncio.sleep(0.05)
        await triton.close()
        await asyncio.sleep(0.3)
    assert small.sequences == [("first", "start")]
