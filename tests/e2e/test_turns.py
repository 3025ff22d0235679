"""
Turns judged by the real model under the real Triton, and what becomes of a session without it.
"""

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
import single_triton
from recordings import recordings
from support.stack import Stack

from dalston import client
from dalston.orchestrator.inference.fleet import Fleet
from dalston.orchestrator.transcription.model_requests import EndOfTurnRequest
from dalston.triton.turn import EndOfTurn

SPEECH = recordings()[0]


@pytest.fixture(scope="module")
def judging_triton(
    turns_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[str]:
    """The HTTP address of a Triton without the slower Whisper."""
    repository = tmp_path_factory.mktemp("judging")
    for model in ("silero_vad", "whisper_fast", "end_of_turn"):
        shutil.copytree(turns_repository / model, repository / model)
    with single_triton.running(repository, tmp_path_factory.mktemp("triton"), 60) as url:
        yield url


async def test_a_turn_is_judged_under_triton_as_it_is_without(
    judging_triton: str, turns_repository: Path
) -> None:
    turn = EndOfTurn(turns_repository / "end_of_turn" / "1" / "end_of_turn.onnx")
    fleet = Fleet([judging_triton])
    try:
        await fleet.variants()
        assert fleet.judges_turns
        for seconds in (1, 3):
            audio = SPEECH.audio[: seconds * 16_000]
            probability = await fleet.end_of_turn(EndOfTurnRequest(1, audio.tobytes()))
            assert probability == pytest.approx(turn.probability(audio), abs=1e-6)
    finally:
        await fleet.close()


async def test_without_the_model_silence_ends_turns_and_the_client_is_told(stack: Stack) -> None:
    async with client.connect(stack.url, language="en", endpointing="smart", eager=True) as session:
        await session.send(SPEECH.audio.tobytes())
        await session.end()
        events = [event async for event in session]
    begin = events[0]
    assert begin["config"]["endpointing"] == "auto"
    assert [warning["code"] for warning in begin["warnings"]] == ["endpointing_fallback"]
    finals = [event["text"] for event in events if event["type"] == "transcript.final"]
    assert len(finals) == len(SPEECH.sentences)


async def test_an_eager_final_comes_in_the_pause_and_the_final_says_the_same(stack: Stack) -> None:
    sentence = SPEECH.sentences[0]
    until = round((sentence.end + 0.4) * 16_000)  # an endpoint needs half a second
    async with client.connect(
        stack.url, language="en", eager=True, min_silence_duration_ms=2000
    ) as session:
        await session.send(SPEECH.audio[:until].tobytes())
        told: list[client.Event] = []
        async for event in session:
            told.append(event)
            if event["type"] == "transcript.eager":
                await session.flush()
                await session.end()
    eager, final = (e for e in told if e["type"] in ("transcript.eager", "transcript.final"))
    assert eager["type"] == "transcript.eager"
    assert (eager["text"], eager["segment_id"]) == (final["text"], final["segment_id"])
