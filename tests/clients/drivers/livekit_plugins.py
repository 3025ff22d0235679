"""
LiveKit's speech-to-text plugins for OpenAI, ElevenLabs and Deepgram, as an agent uses them.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
from driving import Order, drive, explained_by, tell
from livekit import rtc
from livekit.agents import APIConnectOptions, stt
from livekit.agents.utils import http_context
from livekit.plugins import deepgram, elevenlabs, openai

ONCE = APIConnectOptions(max_retry=0)
Making = Callable[[Order, aiohttp.ClientSession], Any]


def of_openai(order: Order, _: aiohttp.ClientSession) -> Any:
    base_url = f"{order.url}/v1"
    model = "gpt-4o-transcribe"
    return openai.STT(model=model, base_url=base_url, api_key=order.key, use_realtime=True)


def of_elevenlabs(order: Order, session: aiohttp.ClientSession) -> Any:
    return elevenlabs.STT(
        model="scribe_v2_realtime",
        base_url=f"{order.url}/v1",
        api_key=order.key,
        server_vad={"vad_silence_threshold_secs": 0.5},
        include_timestamps=True,
        http_session=session,
    )


def of_deepgram(order: Order, session: aiohttp.ClientSession) -> Any:
    base_url = f"{order.url}/v1/listen"
    return deepgram.STT(base_url=base_url, api_key=order.key, http_session=session)


def client(make: Making, rate: int) -> Callable[[Order], Any]:
    async def speak(order: Order) -> None:
        done, spoken = list[str](), [""]

        async def listen() -> None:
            async for event in stream:
                text = event.alternatives[0].text if event.alternatives else ""
                if event.type == stt.SpeechEventType.INTERIM_TRANSCRIPT:
                    spoken[0] = text
                    tell(partial=text)
                elif event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                    spoken[0] = ""
                    done.append(text)
                    tell(final=text)

        async def send(chunk: bytes) -> None:
            if listening.done():
                listening.result()
            stream.push_frame(rtc.AudioFrame(chunk, rate, 1, len(chunk) // 2))

        async with http_context.open(), aiohttp.ClientSession() as session:
            plugin = make(order, session)
            stream = plugin.stream(conn_options=ONCE)
            listening = asyncio.create_task(listen())
            try:
                async with explained_by(listening):
                    await order.speak(rate, send, lambda: bool(done) and not spoken[0])
            finally:
                listening.cancel()
                await stream.aclose()
                await plugin.aclose()

    return speak


drive(
    {
        "deepgram": client(of_deepgram, 16_000),
        "elevenlabs": client(of_elevenlabs, 16_000),
        "openai": client(of_openai, 24_000),
    }
)
