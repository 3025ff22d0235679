"""
The client of Home Assistant, unchanged, before a real stack.
"""

import asyncio

import numpy as np
from recordings import recordings
from scoring import wer
from support.stack import Stack
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info

CHUNK = 1024  # samples, as Home Assistant sends them


async def transcribed(port: int, audio: bytes) -> tuple[str, list[str]]:
    """The transcript, and the events before it."""
    kinds = list[str]()
    async with AsyncTcpClient("127.0.0.1", port) as client, asyncio.timeout(60):
        await client.write_event(Transcribe(language="en").event())
        await client.write_event(AudioStart(16_000, 2, 1).event())
        for at in range(0, len(audio), 2 * CHUNK):
            await client.write_event(
                AudioChunk(16_000, 2, 1, audio[at : at + 2 * CHUNK], at).event()
            )
            await asyncio.sleep(0.005)
        await client.write_event(AudioStop().event())
        while True:
            event = await client.read_event()
            assert event
            if Transcript.is_type(event.type):
                return Transcript.from_event(event).text, kinds
            kinds.append(event.type)


async def test_home_assistant_hears_what_was_said(stack: Stack, wyoming_port: int) -> None:
    stack.until_free()
    async with AsyncTcpClient("127.0.0.1", wyoming_port) as client:
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event
        (program,) = Info.from_event(event).asr
        assert "en" in program.models[0].languages
    recording = recordings()[0]
    text, kinds = await transcribed(wyoming_port, recording.audio.astype(np.int16).tobytes())
    said = " ".join(sentence.text for sentence in recording.sentences)
    assert wer([(said, text)]) <= 0.1, text
    assert kinds[0] == "transcript-start"
    assert kinds.count("transcript-chunk") == len(recording.sentences)
    stack.until_free()
