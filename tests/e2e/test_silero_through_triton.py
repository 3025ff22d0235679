"""
The VAD through a real Triton, in the worker, and the file itself: one and the same to the bit,
whatever the chunks and however many sequences there are at once.
"""

import asyncio
import random
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from recordings import Pcm, recordings
from support.silero_file import probabilities

from dalston.orchestrator.inference.local_vad import LocalVad
from dalston.orchestrator.inference.triton_client import SequenceLost, Triton, speech_probabilities
from dalston.orchestrator.transcription.model_requests import SpeechRequest
from dalston.triton.process import free_port
from dalston.triton.server import Ports, Server

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEQUENCES, SECONDS = 16, 6
Vad = Callable[[SpeechRequest], Awaitable[list[float]]]


@dataclass(frozen=True)
class Placements:
    triton: Triton
    local: LocalVad

    def each(self) -> dict[str, Vad]:
        return {
            "triton": partial(speech_probabilities, self.triton.request_speech),
            "worker": partial(speech_probabilities, self.local.request_speech),
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def placements(
    model_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Placements]:
    ports, stop, told = Ports(free_port(), free_port(), free_port()), asyncio.Event(), list[str]()
    folder = tmp_path_factory.mktemp("triton")
    server = asyncio.create_task(
        Server(model_repository, folder, ports, tell=told.append).run(stop)
    )
    try:
        async with asyncio.timeout(60):
            while "every model answers" not in told and not server.done():
                await asyncio.sleep(0.05)
        if server.done():
            await server
        client = Triton(f"127.0.0.1:{ports.http}")
        yield Placements(client, LocalVad(silero_of(model_repository)))
        await client.close()
    finally:
        stop.set()
        await asyncio.gather(server, return_exceptions=True)


def silero_of(repository: Path) -> Path:
    return repository / "silero_vad" / "1" / "silero.onnx"


async def stream(vad: Vad, sequence: str, audio: Pcm, rng: random.Random) -> list[float]:
    """The probabilities of `audio`, sent in chunks of odd sizes."""
    heard: list[float] = []
    at, start = 0, True
    while at < len(audio):
        size = rng.randrange(1, 5000, 2)
        pcm = audio[at : at + size].tobytes()
        heard += await vad(SpeechRequest(sequence, pcm, start=start))
        at, start = at + size, False
        await asyncio.sleep(rng.random() * 0.01)  # so that they come in every order
    assert await vad(SpeechRequest(sequence, b"", end=True)) == []
    return heard


def bits(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


# K-03, K-04
async def test_both_placements_equal_the_file_for_interleaved_sequences_of_odd_chunks(
    placements: Placements, model_repository: Path
):
    rng = random.Random(11)
    audio = [
        recordings()[number % 10].audio[rng.randrange(2000) :][: SECONDS * 16_000]
        for number in range(SEQUENCES)
    ]
    expected = [bits(probabilities(silero_of(model_repository), pcm).tolist()) for pcm in audio]
    assert len(set(expected)) == SEQUENCES
    for name, vad in placements.each().items():
        heard = await asyncio.gather(
            *(
                stream(vad, f"{name}.{number}", pcm, random.Random(number))
                for number, pcm in enumerate(audio)
            )
        )
        assert [bits(one) for one in heard] == expected, name


async def test_an_endless_chunk_and_one_of_a_sample_give_the_same(
    placements: Placements, model_repository: Path
):
    audio = recordings()[3].audio
    expected = probabilities(silero_of(model_repository), audio).tolist()
    for vad in placements.each().values():
        whole = await vad(SpeechRequest("whole", audio.tobytes(), start=True))
        first = await vad(SpeechRequest("pieces", audio[:1].tobytes(), start=True))
        rest = await vad(SpeechRequest("pieces", audio[1:].tobytes()))
        assert bits(whole) == bits(first + rest) == bits(expected)


async def test_a_sequence_that_is_started_again_is_new_in_both_placements(placements: Placements):
    audio = recordings()[0].audio[: 2 * 16_000].tobytes()
    for vad in placements.each().values():
        first = await vad(SpeechRequest("again", audio, start=True))
        other = await vad(SpeechRequest("again", audio))
        assert bits(other) != bits(first)
        assert bits(await vad(SpeechRequest("again", audio, start=True))) == bits(first)


async def test_a_sequence_nobody_started_or_that_ended_is_lost_in_both_placements(
    placements: Placements,
):
    audio = recordings()[0].audio[:512].tobytes()
    for vad in placements.each().values():
        with pytest.raises(SequenceLost, match="(?i)start"):
            await vad(SpeechRequest("never started", audio))
        assert len(await vad(SpeechRequest("ended", audio, start=True, end=True))) == 1
        with pytest.raises(SequenceLost, match="(?i)start"):
            await vad(SpeechRequest("ended", audio))
