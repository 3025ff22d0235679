"""
Recorded audio, transcribed as live audio is: it is decoded here, and said to an ordinary session
(feed.py) as fast as that takes it. No vendor's shapes.

A recording waits twice, in the line of this gateway and then in that of the slots: only so many are
transcribed at a time, so that live callers find slots. In its worker it comes after them as well
(SessionConfig.recorded).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, BinaryIO, TypeVar

import msgspec
from fastapi import Depends, Request

from dalston.gateway.access.access import Access, AccessDenied, KeyHolder
from dalston.gateway.access.keys import Scope
from dalston.gateway.calls.caller import Caller
from dalston.gateway.calls.connections import Calls
from dalston.gateway.containers import NotAudio, Raw, TooLong, pieces
from dalston.gateway.files.feed import Feed, Recorded
from dalston.gateway.files.refused import Refused
from dalston.gateway.files.upload import Upload, receive_body, receive_form
from dalston.gateway.protocols.protocol import Opening
from dalston.gateway.settings import GatewaySettings
from dalston.gateway.transport.transport import Disconnected
from dalston.orchestrator.protocol.messages import (
    Error,
    Final,
    SessionBegin,
    SessionConfig,
    SessionEnd,
    SessionTerminated,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

Spoken = SessionBegin | Final | SessionEnd


class Transcriber:
    """The recordings of one gateway."""

    def __init__(self, calls: Calls, access: Access, settings: GatewaySettings):
        self._calls, self._access, self._settings = calls, access, settings
        self._turns = asyncio.Semaphore(settings.files_at_once)
        self._threads = ThreadPoolExecutor(settings.files_at_once + 1, "decoding")
        self._serving = set[asyncio.Task[None]]()
        self._here = 0  # that are uploaded, wait or are transcribed

    async def holder(self, request: Request, *scopes: Scope) -> KeyHolder:
        """Who asks, with a key that has one of these scopes. Raises Refused."""
        try:
            return await self._access.holder(request.headers, request.query_params, *scopes)
        except AccessDenied as denied:
            raise Refused(denied.code, str(denied)) from None

    @asynccontextmanager
    async def upload(self, request: Request, form: bool) -> AsyncGenerator[Upload]:
        """What a client sends, until nobody needs it any more. form: a multipart one; else the body
        is the file. Raises Refused and ClientDisconnect."""
        settings = self._settings
        if not settings.files_at_once:
            raise Refused("not_found", "this server transcribes no files")
        await self.holder(request, "files")
        if self._calls.draining:
            raise Refused("no_capacity", "the server is being restarted; try again later")
        if self._here >= settings.files_waiting:
            raise Refused("no_capacity", "as many files wait as may; try again later")
        self._here += 1
        try:
            receive = receive_form if form else receive_body
            upload = await receive(request, settings.file_bytes, settings.upload_seconds)
            try:
                yield upload
            finally:
                upload.close()
        finally:
            self._here -= 1

    async def transcribe(
        self, request: Request, file: BinaryIO, config: SessionConfig, raw: Raw | None = None
    ) -> AsyncGenerator[Spoken]:
        """The begin, the finals and the end of a recording. raw: what it is if it has no container.

        Raises Refused, and Disconnected if the client leaves.
        """
        leaving = asyncio.create_task(_until_left(request))
        audio = self._decoded(pieces(file, self._settings.file_seconds, raw))
        try:
            async with aclosing(audio):
                # What is no audio has to wait for nothing.
                first = await _unless(leaving, anext(audio))
                await self._turn(leaving)
                try:
                    async with aclosing(self._said(request, config, first, audio)) as said:
                        while (message := await _unless(leaving, anext(said, None))) is not None:
                            yield message
                finally:
                    self._turns.release()
        except NotAudio as error:
            raise Refused("invalid_audio", str(error), "file") from None
        except TooLong as error:
            raise Refused("audio_too_long", str(error), "file") from None
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _turn(self, leaving: asyncio.Task[None]) -> None:
        """Wait for the turn of this gateway's next file. Raises Refused and Disconnected."""
        try:
            async with asyncio.timeout(self._settings.file_queue_seconds):
                await _unless(leaving, self._turns.acquire())
        except TimeoutError:
            raise Refused("no_capacity", "other files are still before it; try again") from None

    async def _said(
        self, request: Request, config: SessionConfig, first: bytes, audio: AsyncGenerator[bytes]
    ) -> AsyncGenerator[Spoken]:
        """Have a session hear it. Raises Refused, NotAudio and TooLong."""
        config = msgspec.structs.replace(
            config, recorded=True, interim_results=False, enable_vad=False
        )
        feed = Feed(request.client.host if request.client else "")
        opening = Opening(request.query_params.multi_items(), request.headers)
        caller = Caller(feed, Recorded(config), opening, self._settings.frame_bytes)
        serving = asyncio.create_task(self._calls.serve(caller, "files"))
        serving.add_done_callback(lambda _: feed.leave())
        self._serving.add(serving)
        serving.add_done_callback(self._on_served)
        saying = asyncio.create_task(feed.say(_again(first, audio)))
        try:
            while (message := await feed.told()) is not None:
                match message:
                    case SessionBegin() | Final():
                        yield message
                    case SessionEnd(reason="client_end"):
                        yield message
                        return
                    case SessionEnd():
                        raise Refused("no_capacity", "the server is being restarted")
                    case SessionTerminated():
                        raise Refused("worker_lost", f"the session has ended: {message.reason}")
                    case Error():
                        raise Refused(message.code, message.message)
                    case _:
                        pass
            raise Refused("internal_error", "something went wrong in the server")
        finally:
            saying.cancel()
            feed.leave()
            # Not gathered: whoever cancels us must not cancel the call, which gives its slot back.
            await asyncio.wait([serving, saying])

    def _on_served(self, serving: asyncio.Task[None]) -> None:
        self._serving.discard(serving)
        if not serving.cancelled() and (error := serving.exception()):
            logger.error("a file: %r", error)

    async def _decoded(self, audio: Generator[bytes]) -> AsyncGenerator[bytes]:
        """The same, decoded in a thread. Raises NotAudio and TooLong."""
        loop, step = asyncio.get_running_loop(), None
        try:
            while True:
                step = loop.run_in_executor(self._threads, next, audio, b"")
                if not (piece := await asyncio.shield(step)):
                    return
                yield piece
        finally:
            # A thread that is at work has the decoder until it is done.
            if step:
                await asyncio.wait([step])
            await loop.run_in_executor(self._threads, audio.close)


async def _transcriber(request: Request) -> Transcriber:
    return request.app.state.gateway.transcriber


Here = Annotated[Transcriber, Depends(_transcriber)]  # of a route


async def _again(first: bytes, audio: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for piece in audio:
        yield piece


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(left: asyncio.Task[None], work: Awaitable[T]) -> T:
    """The result of `work`, unless the client leaves before. Raises Disconnected."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([left, task], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
