"""
Pipecat's speech-to-text services for OpenAI and Deepgram, in a pipeline as a bot has it. Those for
ElevenLabs insist on TLS.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from driving import Failed, Order, drive, explained_by, tell
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    TranscriptionFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.services.openai.stt import OpenAIRealtimeSTTService

RATE = 16_000


def of_openai(order: Order) -> Any:
    address = f"{order.websocket}/v1/realtime"
    # None: the server ends turns.
    return OpenAIRealtimeSTTService(api_key=order.key, base_url=address, turn_detection=None)


def of_deepgram(order: Order) -> Any:
    return DeepgramSTTService(api_key=order.key, base_url=order.websocket, sample_rate=RATE)


class Ear(FrameProcessor):
    """Notes what the service before it has understood."""

    def __init__(self) -> None:
        super().__init__()
        self.spoken, self.done = "", 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InterimTranscriptionFrame):
            self.spoken = frame.text
            tell(partial=frame.text)
        elif isinstance(frame, TranscriptionFrame):
            self.spoken, self.done = "", self.done + 1
            tell(final=frame.text)
        await self.push_frame(frame, direction)


def client(make: Callable[[Order], Any]) -> Callable[[Order], Any]:
    async def speak(order: Order) -> None:
        service, ear = make(order), Ear()
        failed = asyncio.get_running_loop().create_future()
        task = PipelineTask(
            Pipeline([service, ear]),
            params=PipelineParams(audio_in_sample_rate=RATE),
            cancel_on_idle_timeout=False,
        )

        @task.event_handler("on_pipeline_error")
        async def on_error(_: Any, frame: Any) -> None:
            if not failed.done():
                failed.set_exception(Failed(type(frame).__name__, str(frame.error)))

        running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))

        async def send(chunk: bytes) -> None:
            if failed.done():
                failed.result()
            await task.queue_frame(InputAudioRawFrame(chunk, RATE, 1))

        try:
            async with explained_by(failed):
                await order.speak(RATE, send, lambda: bool(ear.done) and not ear.spoken)
        finally:
            await task.cancel()
            await running

    return speak


drive({"deepgram": client(of_deepgram), "openai": client(of_openai)})
