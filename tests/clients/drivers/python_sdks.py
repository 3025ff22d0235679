"""
The Python SDKs of OpenAI, ElevenLabs and Deepgram, the test client of vosk-server, and the example
client of servers that are told when to record.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

from driving import Failed, Order, drive, explained_by, tell
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def openai(order: Order) -> None:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key=order.key, base_url=f"{order.url}/v1")
    begun, done = set[str](), set[str]()

    def completed(event: Any) -> None:
        done.add(event.item_id)
        tell(final=event.transcript)

    query = {"intent": "transcription"}
    async with client.realtime.connect(model="gpt-4o-transcribe", extra_query=query) as connection:
        connection.on("input_audio_buffer.speech_started", lambda event: begun.add(event.item_id))
        about = "conversation.item.input_audio_transcription"
        connection.on(f"{about}.delta", lambda event: tell(partial=event.delta))
        connection.on(f"{about}.completed", completed)
        listening = asyncio.create_task(connection.dispatch_events())
        async with explained_by(listening):
            await connection.session.update(
                session={
                    "type": "transcription",
                    "audio": {
                        "input": {
                            "format": {"type": "audio/pcm", "rate": 24_000},
                            "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                            "turn_detection": {"type": "server_vad"},
                        }
                    },
                }
            )

            async def send(chunk: bytes) -> None:
                await connection.input_audio_buffer.append(audio=base64.b64encode(chunk).decode())

            await order.speak(24_000, send, lambda: bool(done) and begun == done)
        listening.cancel()


async def elevenlabs(order: Order) -> None:
    from elevenlabs import (
        AudioFormat,
        CommitStrategy,
        ElevenLabs,
        RealtimeAudioOptions,
        RealtimeEvents,
    )

    client = ElevenLabs(api_key=order.key, base_url=order.url)
    connection = await client.speech_to_text.realtime.connect(
        RealtimeAudioOptions(
            model_id="scribe_v2_realtime",
            audio_format=AudioFormat.PCM_16000,
            sample_rate=16_000,
            commit_strategy=CommitStrategy.VAD,
            language_code="en",
            include_timestamps=True,
        )
    )
    spoken, done = [""], list[str]()  # what is not committed yet; what is
    failed = asyncio.get_running_loop().create_future()

    def partial(message: dict[str, Any]) -> None:
        spoken[0] = message["text"]
        tell(partial=message["text"])

    def committed(message: dict[str, Any]) -> None:
        assert "".join(item["text"] for item in message["words"]) == message["text"]
        spoken[0] = ""
        done.append(message["text"])
        tell(final=message["text"])

    def error(message: dict[str, Any]) -> None:
        if not failed.done():
            failed.set_exception(Failed(message["message_type"], message["error"]))

    connection.on(RealtimeEvents.PARTIAL_TRANSCRIPT, partial)
    connection.on(RealtimeEvents.COMMITTED_TRANSCRIPT_WITH_TIMESTAMPS, committed)
    connection.on(RealtimeEvents.ERROR, error)

    async def send(chunk: bytes) -> None:
        await connection.send({"audio_base_64": base64.b64encode(chunk).decode()})

    try:
        async with explained_by(failed):
            await order.speak(16_000, send, lambda: bool(done) and not spoken[0])
    finally:
        await connection.close()


def _deepgram(order: Order) -> Any:
    from deepgram import AsyncDeepgramClient
    from deepgram.environment import DeepgramClientEnvironment

    environment = DeepgramClientEnvironment(
        base=order.url, production=order.websocket, agent="", agent_rest=""
    )
    return AsyncDeepgramClient(api_key=order.key, environment=environment)


async def _speak(connection: Any, hear: Callable[[Any], None], order: Order) -> None:
    from deepgram.core.events import EventType

    connection.on(EventType.MESSAGE, hear)
    listening = asyncio.create_task(connection.start_listening())
    await order.speak(16_000, connection.send_media)
    await connection.send_close_stream()
    await listening


async def deepgram(order: Order) -> None:
    def hear(message: Any) -> None:
        if message.type == "Results" and (text := message.channel.alternatives[0].transcript):
            tell(**{"final" if message.is_final else "partial": text})

    async with _deepgram(order).listen.v1.connect(
        model="nova-3",
        language="en",
        encoding="linear16",
        sample_rate=16_000,
        interim_results=True,
        punctuate=True,
    ) as connection:
        await _speak(connection, hear, order)


async def flux(order: Order) -> None:
    def hear(message: Any) -> None:
        if message.type == "TurnInfo" and message.transcript:
            tell(**{"final" if message.event == "EndOfTurn" else "partial": message.transcript})

    async with _deepgram(order).listen.v2.connect(
        model="flux-general-en", encoding="linear16", sample_rate=16_000
    ) as connection:
        await _speak(connection, hear, order)


async def vosk(order: Order) -> None:
    """As test.py of vosk-server does it: each chunk is answered before the next is sent."""
    async with connect(f"{order.websocket}/vosk?api_key={order.key}&language=en") as socket:

        async def ask(question: str | bytes) -> None:
            with contextlib.suppress(ConnectionClosed):  # then the answer says why
                await socket.send(question)
            told = json.loads(await socket.recv())
            if "error" in told:
                raise Failed("error", told["error"])
            for kind, name in (("partial", "partial"), ("final", "text")):
                if told.get(name):
                    tell(**{kind: told[name]})

        with contextlib.suppress(ConnectionClosed):
            await socket.send('{ "config" : { "sample_rate" : 16000 } }')
        await order.speak(16_000, ask)
        await ask('{"eof" : 1}')


async def recordings(order: Order) -> None:
    """As the page of servers that are started and stopped: it waits for a greeting first."""
    address = f"{order.websocket}/ws/transcribe?client_id=me&api_key={order.key}"
    async with connect(address) as socket:

        async def listen() -> None:
            async for text in socket:
                told = json.loads(text)
                match told["type"]:
                    case "error":
                        raise Failed("error", told["error"])
                    case "partial":
                        tell(partial=told["text"])
                    case "transcription":
                        assert all(word["start"] <= word["end"] for word in told["words"])
                        tell(final=told["text"])
                    case "recording_stopped":
                        return
                    case _:
                        pass

        assert json.loads(await socket.recv())["type"] == "connection"
        listening = asyncio.create_task(listen())
        config = {"sample_rate": 16_000, "encoding": "pcm16", "language": "en"}
        async with explained_by(listening):
            await socket.send(json.dumps({"type": "start_recording", "config": config}))
            await order.speak(16_000, socket.send)
            await socket.send('{"type":"stop_recording"}')
        await listening


drive(
    {
        "deepgram": deepgram,
        "elevenlabs": elevenlabs,
        "flux": flux,
        "openai": openai,
        "recordings": recordings,
        "vosk": vosk,
    }
)
