"""
The models of one Triton, as coroutines. fleet.py makes one of several.

Finals are asked for at once, and so is the first partial of an utterance while finals leave room
for it. Other partials wait here while as much is under way as keeps the models busy, so that what
is waited for finds little before it; Triton's own priorities would do some of this too, but stall
its batcher (docs/log.md).
"""

import asyncio
import math
import secrets
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
import numpy as np

from dalston.orchestrator.inference.health_channel import Channel, Inference
from dalston.orchestrator.inference.http import Answer, CallFailed, Code
from dalston.orchestrator.inference.turns import Turns
from dalston.orchestrator.process import traces
from dalston.orchestrator.transcription.model_requests import (
    Hypothesis,
    SpeechRequest,
    TimedWord,
    TranscriptRequest,
    TurnRequest,
)
from dalston.triton.contract import (
    SAMPLE_RATE,
    STAGES,
    TURN_MODEL,
    VAD_MODEL,
    VARIANTS,
    WINDOWS,
    asleep_mark,
    whisper_model,
)

T = TypeVar("T")

SPEECH_DEADLINE_S = 10.0
# Questions to the VAD that come closer together than this leave together. Where there are many,
# that halves what one costs worker, Triton and VAD (docs/log.md); where there are few, none waits.
SPEECH_EVERY_S = 0.04
# A session stands still while it waits for this. It is answered in a tenth of a second; what is
# later than this comes too late for lag that is warned of (orchestrator/transcription/lag.py).
TURN_DEADLINE_S = 2.0
PARTIAL_DEADLINE_S = 5.0  # another is due long before
FINAL_DEADLINE_S = 60.0
PROBE_DEADLINE_S = 10.0  # behind a queue of finals
LOADING_S = 600.0  # large checkpoints take minutes
LOOK_EVERY_S = 0.2  # whether it is there
_SILENCE = bytes(2 * 1600)  # 0.1 s

# The outputs a partial needs; a final also wants words and scores.
_PARTIAL_OUTPUTS = (
    "TEXT",
    "TOKENS",
    "TOKEN_ENDS",
    "TOKEN_TIMES",
    "TOKEN_LOGPROBS",
    "LANGUAGE",
    "LANGUAGE_PROBABILITY",
    "WINDOW_SECONDS",
)
_FINAL_OUTPUTS = (
    *_PARTIAL_OUTPUTS,
    "AVERAGE_LOGPROB",
    "NO_SPEECH_PROBABILITY",
    "SUSPECT",
    "PROMPT_CUT",
    "WORD",
    "WORD_START",
    "WORD_END",
    "WORD_PROBABILITY",
    "STAGE_SECONDS",
)
_DTYPES = {"INT32": np.dtype("<i4"), "FP32": np.dtype("<f4"), "BOOL": np.dtype("?")}


class InferenceError(Exception):
    """A model did not answer. `retryable`: it may, if asked again."""

    def __init__(self, sentence: str, retryable: bool, code: Code = Code.UNAVAILABLE):
        super().__init__(sentence)
        self.retryable = retryable
        self.code = code


class SequenceLost(Exception):
    """The VAD no longer knows this sequence, or never will: it has to be started again."""

    def __init__(self, sentence: str, code: Code = Code.NOT_FOUND):
        super().__init__(sentence)
        self.code = code


# What the VAD makes of a request: the probability of each whole frame, or why there is none.
Heard = list[float] | SequenceLost
# Asks the VAD. The second argument is called with the answer: once, and later.
Hear = Callable[[SpeechRequest, Callable[[Heard], None]], None]


async def speech_probabilities(hear: Hear, request: SpeechRequest) -> list[float]:
    """For who would rather wait. Raises SequenceLost."""
    answer: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
    hear(request, lambda heard: None if answer.done() else answer.set_result(heard))
    heard = await answer
    if isinstance(heard, SequenceLost):
        raise heard
    return heard


@dataclass(frozen=True)
class LoadedVariant:
    """What Triton serves as whisper_<variant>."""

    model_id: str
    languages: tuple[str, ...]
    translates: bool
    partials_in_flight: int  # at most, of one worker


class Triton:
    """The models behind one server's URL, "host:port" of its HTTP."""

    def __init__(self, url: str):
        self._channel = Channel(url, self.probe)
        self._speech = list[tuple[Inference, Callable[[Answer | CallFailed], None]]]()  # to leave
        self._speech_left = -math.inf  # loop time, the last
        self._speech_leaves: asyncio.TimerHandle | None = None
        self.judges_turns = False  # whether it has the model for that; of `variants`
        self._waiting = 0  # partials, for their turn
        # Of transcripts, by variant; as large as the variant was when it was first seen.
        self._turns: dict[str, Turns] = {}
        self._seen: dict[str, LoadedVariant] = {}
        # Models that are unloaded, or not loaded again yet.
        self.asleep: set[str] = set()
        self.loading: set[str] = set()  # of these, the ones we load

    async def close(self) -> None:
        if self._speech_leaves:
            self._speech_leaves.cancel()
        await self._channel.close()

    @property
    def url(self) -> str:
        return self._channel.url

    @property
    def pending(self) -> int:
        return self._waiting + self._channel.pending

    def mute_s(self, model: str) -> float:
        """For how long a model has answered nobody, while somebody waits."""
        return self._channel.mute_s(model)

    async def variants(self) -> Mapping[str, LoadedVariant]:
        """The Whisper variants that are ready, and those that were and are asleep.

        Raises InferenceError if the VAD is not ready, or no variant.
        """
        try:
            if not (await self._ready(VAD_MODEL)):
                raise InferenceError(f"{VAD_MODEL} is not ready", retryable=True)
            self.judges_turns = await self._ready(TURN_MODEL)
            loaded: dict[str, LoadedVariant] = {}
            for variant in VARIANTS:
                if not await self._ready(whisper_model(variant)):
                    if await self.sleeps(whisper_model(variant)) and variant in self._seen:
                        loaded[variant] = self._seen[variant]
                    continue
                self.asleep.discard(whisper_model(variant))
                page = await self._channel.get(f"/v2/models/{whisper_model(variant)}/config")
                config = _config(page)
                loaded[variant] = LoadedVariant(
                    config.parameters["checkpoint_id"].string_value,
                    tuple(config.parameters["languages"].string_value.split()),
                    config.parameters.get("translates", _NO).string_value == "yes",
                    config.partials_in_flight,
                )
                self._seen[variant] = loaded[variant]
                self._turns.setdefault(variant, Turns(loaded[variant].partials_in_flight))
        except CallFailed as error:
            raise _failed(error) from None
        if not loaded:
            raise InferenceError("no Whisper model is ready", retryable=True)
        return loaded

    async def _ready(self, model: str) -> bool:
        """Raises InferenceError if it is the server that does not answer."""
        path = f"/v2/models/{model}/ready"
        return await self._ask(self._channel.get(path), lambda _: True, False)

    async def sleeps(self, model: str) -> bool:
        """Whether a model is unloaded, or just being loaded. Raises InferenceError."""
        if await self._ready(model):
            asleep = False
        elif await self._is_marked(model):
            asleep = True
        else:
            index = await self._ask(self._channel.post("/v2/repository/index"), _index, [])
            asleep = any(one.name == model and one.asleep for one in index)
        (self.asleep.add if asleep else self.asleep.discard)(model)
        return asleep

    async def load(self, model: str) -> None:
        """Have a model loaded that is asleep, if it is. Raises InferenceError.

        Its supervisor does it (triton/server.py): Triton's HTTP answers nobody while it loads
        what it was asked for. Who takes the mark away wants the model; it is back when the model
        could not be loaded.
        """
        if not await self.sleeps(model):
            return
        self.loading.add(model)
        try:
            path = f"/v2/systemsharedmemory/region/{asleep_mark(model)}/unregister"
            await self._ask(self._channel.post(path), bytes, b"")
            async with asyncio.timeout(LOADING_S):
                while await self.sleeps(model):
                    await asyncio.sleep(LOOK_EVERY_S)
                    if await self._is_marked(model):
                        raise InferenceError(f"{model} of {self.url} cannot be loaded", True)
        except TimeoutError:
            sentence = f"{model} of {self.url} was not loaded within {LOADING_S:g} s"
            raise InferenceError(sentence, retryable=True) from None
        finally:
            self.loading.discard(model)

    async def _is_marked(self, model: str) -> bool:
        """Whether its supervisor has put a model to sleep, and nobody has wanted it since."""
        regions = await self._ask(self._channel.get("/v2/systemsharedmemory/status"), _regions, [])
        return any(region.name == asleep_mark(model) for region in regions)

    async def _ask(self, page: Awaitable[bytes], read: Callable[[bytes], T], without: T) -> T:
        """What a page says; `without`, where a Triton has none. Raises InferenceError."""
        try:
            return read(await page)
        except CallFailed as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                raise _failed(error) from None
            return without

    async def answers_given(self, model: str) -> int | None:
        """By a model, to anybody, since it was loaded; None: it does not tell."""
        try:
            page = await self._channel.get(f"/v2/models/{model}/stats")
            return sum(one.inference_stats.success.count for one in _stats(page).model_stats)
        except (CallFailed, msgspec.MsgspecError):
            return None

    async def probe(self, model: str) -> None:
        """Whether a model works, by asking it something small. Raises InferenceError."""
        if model == TURN_MODEL:
            await self.turn_over(TurnRequest(0, _SILENCE), PROBE_DEADLINE_S)
            return
        if model != VAD_MODEL:
            (variant,) = (name for name in VARIANTS if whisper_model(name) == model)
            request = TranscriptRequest(0, "partial", _SILENCE, "en", variant)  # pyright: ignore[reportArgumentType]
            await self._whisper(request, PROBE_DEADLINE_S)
            return
        sequence = f"probe.{secrets.token_hex(8)}"
        try:
            for request in (
                SpeechRequest(sequence, bytes(1024), start=True),
                SpeechRequest(sequence, b"", end=True),
            ):
                await speech_probabilities(self.hear, request)
        except SequenceLost as error:
            raise InferenceError(str(error), retryable=True, code=error.code) from None

    def hear(self, request: SpeechRequest, tell: Callable[[Heard], None]) -> None:
        """`tell` is called with the probability of each whole frame, or with why there is none."""
        call = Inference(
            VAD_MODEL,
            ("PROBABILITY",),
            sequence_id=request.sequence,
            sequence_start=request.start,
            sequence_end=request.end,
        )
        call.add("AUDIO", "INT16", len(request.audio) // 2, request.audio)

        def answered(result: Answer | CallFailed) -> None:
            try:
                if isinstance(result, CallFailed):
                    raise result
                _, content = Inference.outputs(result).get("PROBABILITY", ("FP32", b""))
            except CallFailed as error:
                # Whatever it was, this part of the audio was or was not heard: nobody knows.
                return tell(SequenceLost(_sentence(error), error.code))
            tell(list(struct.unpack(f"<{len(content) // 4}f", content)))

        self._speech.append((call, answered))
        if self._speech_leaves:
            return
        loop = asyncio.get_running_loop()
        wait = self._speech_left + SPEECH_EVERY_S - loop.time()
        # Not at once: frames come in rounds (gateway/transport/read_rounds.py), and others may be
        # read already.
        self._speech_leaves = loop.call_later(max(wait, 0), self._ask_speech)

    def _ask_speech(self) -> None:
        self._speech_leaves = None
        self._speech_left = asyncio.get_running_loop().time()
        asked, self._speech = self._speech, []
        for call, answered in asked:
            self._channel.ask(call, SPEECH_DEADLINE_S, answered)

    async def turn_over(self, request: TurnRequest, deadline_s: float = TURN_DEADLINE_S) -> float:
        """How likely it is that the turn is over. Raises InferenceError."""
        call = Inference(TURN_MODEL, ("PROBABILITY",))
        call.add("AUDIO", "INT16", len(request.audio) // 2, request.audio)
        try:
            outputs = await self._channel.infer(call, deadline_s)
        except CallFailed as error:
            raise InferenceError(_sentence(error), retryable=True, code=error.code) from None
        return float(_value(*outputs["PROBABILITY"])[0])

    async def transcribe(self, request: TranscriptRequest) -> Hypothesis:
        """For a variant of `variants`. Raises InferenceError."""
        if request.kind == "partial":
            turns = self._turns[request.variant]
            if request.urgent and not turns.crowded:
                turns.go()
            else:
                self._waiting += 1
                try:
                    await turns.take()
                finally:
                    self._waiting -= 1
                request = request.newest() if request.newest else request
            outputs = await self._whisper(request, PARTIAL_DEADLINE_S, over=turns.give_back)
            return _hypothesis(outputs, {})
        asked = time.perf_counter()
        outputs = await self._final(request)
        spent, window = outputs["STAGE_SECONDS"], float(outputs["WINDOW_SECONDS"][0])
        if bool(outputs["SUSPECT"][0]):
            # Right-sized windows can harm a stock checkpoint: once more as it was trained.
            outputs = await self._final(request, full_window=True)
            spent = spent + outputs["STAGE_SECONDS"]
            window += float(outputs["WINDOW_SECONDS"][0])
        elsewhere = time.perf_counter() - asked - float(spent.sum())
        stages = dict(zip(STAGES, spent.tolist(), strict=True), queue=elsewhere)
        return replace(_hypothesis(outputs, stages), window_seconds=window)

    async def _final(self, request: TranscriptRequest, full_window: bool = False) -> dict[str, Any]:
        about = {"dalston.triton": self.url, "dalston.full_window": full_window}
        turns = self._turns[request.variant]
        turns.go()
        with traces.span(whisper_model(request.variant), about, kind="client"):
            return await self._whisper(request, FINAL_DEADLINE_S, full_window, turns.give_back)

    async def _whisper(
        self,
        request: TranscriptRequest,
        deadline_s: float,
        full_window: bool = False,
        over: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        wanted = _FINAL_OUTPUTS if request.kind == "final" else _PARTIAL_OUTPUTS
        call = Inference(whisper_model(request.variant), wanted)
        prefix = np.array(request.prefix, "<i4").tobytes()
        draft = np.array(request.draft, "<i4").tobytes()
        samples = len(request.audio) // 2
        call.audio_s = WINDOWS[-1] if full_window else samples / SAMPLE_RATE
        call.add("AUDIO", "INT16", samples, request.audio)
        call.add("LANGUAGE", "BYTES", 1, _string(request.language))
        call.add("TASK", "BYTES", 1, _string(request.task))
        call.add("PROMPT", "BYTES", 1, _string(request.prompt))
        call.add("KEYWORDS", "BYTES", 1, _string("\n".join(request.keywords)))
        call.add("PREFIX", "INT32", len(request.prefix), prefix)
        call.add("DRAFT", "INT32", len(request.draft), draft)
        call.add("WORDS", "BOOL", 1, bytes([request.words]))
        call.add("FULL_WINDOW", "BOOL", 1, bytes([full_window]))
        try:
            headers = traces.headers() if request.kind == "final" else ()
            outputs = await self._channel.infer(call, deadline_s, over, headers)
        except CallFailed as error:
            retryable = error.code not in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)
            raise InferenceError(_sentence(error), retryable, error.code) from None
        return {name: _value(*output) for name, output in outputs.items()}


class _Group(msgspec.Struct):
    count: int
    kind: str


class _Parameter(msgspec.Struct):
    string_value: str


_NO = _Parameter("no")


class _Config(msgspec.Struct):
    """What we need of https://github.com/triton-inference-server/common, ModelConfig."""

    max_batch_size: int
    instance_group: list[_Group]
    parameters: dict[str, _Parameter]

    @property
    def partials_in_flight(self) -> int:
        """Enough to keep every instance busy, and batches as large as finals can wait for: on a
        CPU a row in a batch of three costs two thirds of one alone."""
        (group,) = self.instance_group
        rows = self.max_batch_size if group.kind == "KIND_GPU" else 3
        return rows * group.count


class _Indexed(msgspec.Struct):
    """A model of the repository.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
    """

    name: str
    state: str = ""
    reason: str = ""

    @property
    def asleep(self) -> bool:
        return self.state in ("UNLOADING", "LOADING") or self.reason == "unloaded"


class _Region(msgspec.Struct):
    """https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_shared_memory.md"""

    name: str


class _Count(msgspec.Struct):
    count: int


class _Outcomes(msgspec.Struct):
    success: _Count


class _ModelStats(msgspec.Struct):
    inference_stats: _Outcomes


class _Stats(msgspec.Struct):
    """What we need of
    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
    """

    model_stats: list[_ModelStats]


_config = msgspec.json.Decoder(_Config).decode
_index = msgspec.json.Decoder(list[_Indexed]).decode
_regions = msgspec.json.Decoder(list[_Region]).decode
_stats = msgspec.json.Decoder(_Stats).decode


def _string(text: str) -> bytes:
    """Triton's form of one string: its length, then its bytes."""
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _value(datatype: str, content: memoryview) -> Any:
    if datatype != "BYTES":
        return np.frombuffer(content, _DTYPES[datatype])
    strings, at = list[str](), 0
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at)
        strings.append(str(content[at + 4 : at + 4 + length], "utf-8"))
        at += 4 + length
    return strings


def _hypothesis(outputs: dict[str, Any], stages: Mapping[str, float]) -> Hypothesis:
    """Of the outputs that were asked for and have elements."""
    words = zip(
        outputs.get("WORD", ()),
        outputs.get("WORD_START", ()),
        outputs.get("WORD_END", ()),
        outputs.get("WORD_PROBABILITY", ()),
        strict=True,
    )
    return Hypothesis(
        text=outputs["TEXT"][0],
        tokens=tuple(map(int, outputs.get("TOKENS", ()))),
        token_ends=tuple(map(int, outputs.get("TOKEN_ENDS", ()))),
        token_times=tuple(map(float, outputs.get("TOKEN_TIMES", ()))),
        token_logprobs=tuple(map(float, outputs.get("TOKEN_LOGPROBS", ()))),
        language=outputs["LANGUAGE"][0],
        language_probability=float(outputs["LANGUAGE_PROBABILITY"][0]),
        average_logprob=float(outputs["AVERAGE_LOGPROB"][0])
        if "AVERAGE_LOGPROB" in outputs
        else 0.0,
        no_speech_probability=float(outputs["NO_SPEECH_PROBABILITY"][0])
        if "NO_SPEECH_PROBABILITY" in outputs
        else 0.0,
        window_seconds=float(outputs["WINDOW_SECONDS"][0]),
        prompt_cut=int(sum(outputs.get("PROMPT_CUT", ()))),
        words=tuple(TimedWord(w, float(a), float(b), float(p)) for w, a, b, p in words),
        stages=stages,
    )


def _failed(error: CallFailed) -> InferenceError:
    return InferenceError(_sentence(error), retryable=True, code=error.code)


def _sentence(error: CallFailed) -> str:
    return f"Triton: {error}"
