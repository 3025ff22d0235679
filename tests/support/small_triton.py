"""
Small servers that speak Triton's protocol over real sockets, and fail when they are told to.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from instant import Asked, Instant, Refused, Tensor

from dalston.orchestrator.transcription.model_requests import SpeechRequest, TranscriptRequest
from dalston.triton.contract import VAD_MODEL, VARIANTS, asleep_mark, whisper_model

MODELS = (VAD_MODEL, *map(whisper_model, VARIANTS))
PROBE = 3200  # bytes of audio: what the orchestrator probes Whisper with


class SmallTriton(Instant):
    def __init__(self) -> None:
        # What requests fail with, probes too; until it is None again.
        self.failure: tuple[int, str] | None = None
        # What only requests of callers fail with, in this order.
        self.failures: Sequence[tuple[int, str]] = ()
        self.answering = asyncio.Event()  # else every answer waits, but for whether it lives
        self.answering.set()
        self.living = asyncio.Event()  # else that one too
        self.living.set()
        self.transcripts = 0  # asked by callers
        self.answered = 0  # of them
        self.sequences = list[tuple[str, str]]()  # and "start", "end" or ""
        self.probes = 0  # of Whisper
        # Models that are unloaded; they are loaded when somebody wants them, once they may be.
        self.asleep = dict[str, str]()  # and their state
        self.loads = list[str]()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.marks = set[str]()  # of models that are unloaded, and that nobody wants
        self.loadable = True
        self._loading = set[asyncio.Task[None]]()
        self.given = 0  # answers, as its statistics tell

    def sleep(self, model: str) -> None:
        self.asleep[model] = "UNAVAILABLE"
        self.marks.add(asleep_mark(model))

    async def _load(self, model: str) -> None:
        self.loads.append(model)
        self.asleep[model] = "LOADING"
        await self.may_load.wait()
        if self.loadable:
            del self.asleep[model]
        else:
            self.sleep(model)

    async def live(self) -> None:
        await self.living.wait()

    async def ready(self, model: str) -> None:
        await self.living.wait()
        if model in self.asleep:
            raise Refused(400, "Model version not ready")

    async def page(self, path: str) -> bytes:
        match path.split("/"):
            case ["", "v2", "repository", "index"]:
                return json.dumps([self._indexed(model) for model in MODELS]).encode()
            case ["", "v2", "systemsharedmemory", "status"]:
                return json.dumps([{"name": mark} for mark in self.marks]).encode()
            case ["", "v2", "systemsharedmemory", "region", mark, "unregister"]:
                if mark in self.marks:
                    self.marks.remove(mark)
                    loading = asyncio.create_task(self._load(mark.removeprefix("asleep.")))
                    self._loading.add(loading)
                    loading.add_done_callback(self._loading.discard)
                return b""
            case ["", "v2", "models", _, "stats"]:
                count = {"inference_stats": {"success": {"count": self.given}}}
                return json.dumps({"model_stats": [count]}).encode()
            case _:
                return await super().page(path)

    def _indexed(self, model: str) -> dict[str, str]:
        state = self.asleep.get(model, "READY")
        reason = {"reason": "unloaded"} if state == "UNAVAILABLE" else {}
        return {"name": model, "version": "1", "state": state} | reason

    async def infer(self, asked: Asked) -> dict[str, Tensor]:
        probe = len(asked.inputs["AUDIO"]) == PROBE
        if asked.model == VAD_MODEL:
            sequence = asked.parameters["sequence_id"]
            probe = sequence.startswith("probe.")
            flags = [flag for flag in ("start", "end") if asked.parameters[f"sequence_{flag}"]]
            if not probe:
                self.sequences.append((sequence, " ".join(flags)))
        elif probe:
            self.probes += 1
        else:
            self.transcripts += 1
        if asked.model in self.asleep:
            raise Refused(404, f"unknown model: '{asked.model}' has no available versions")
        await self.living.wait()
        await self.answering.wait()
        failure = self.failure
        if not probe and self.failures:
            failure, *self.failures = self.failures
        if failure:
            raise Refused(*failure)
        self.answered += not probe and asked.model != VAD_MODEL
        return await super().infer(asked)


class Wire:
    """A TCP connection's way to a port, which can lose everything without a word."""

    def __init__(self, port: int):
        self._to = port
        self._connections = self._lost = 0  # so far; those up to this one
        self._tasks = set[asyncio.Task[None]]()

    def cut(self) -> None:
        """What is connected hears nothing any more; new connections are fine."""
        self._lost = self._connections

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        there, back = await asyncio.open_connection("127.0.0.1", self._to)

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(1 << 16):
                    if number > self._lost:
                        sink.write(data)
            except ConnectionError:
                pass
            finally:
                sink.close()

        for pair in ((reader, back), (there, writer)):
            task = asyncio.create_task(carry(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def final(variant: Any = "fast") -> TranscriptRequest:
    return TranscriptRequest(1, "final", bytes(6400), "en", variant)


def partial(variant: Any = "fast") -> TranscriptRequest:
    return TranscriptRequest(1, "partial", bytes(6400), "en", variant)


def start(sequence: str) -> SpeechRequest:
    return SpeechRequest(sequence, bytes(1024), start=True)


def more(sequence: str) -> SpeechRequest:
    return SpeechRequest(sequence, bytes(1024))


def end(sequence: str) -> SpeechRequest:
    return SpeechRequest(sequence, b"", end=True)
