"""
The models of one Triton, as coroutines. fleet.py makes one of several.

Finals are asked for at once, and so is the first partial of an utterance while finals leave room
for it. Other partials wait here while as much is under way as keeps the models busy, so that what
is waited for finds little before it; Triton's own priorities would do some of this too, but stall
its batcher (docs/log.md). Finals of recordings wait here until live sessions leave room for them.
"""

import asyncio
import logging
import math
import secrets
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
import numpy as np

from dalston.orchestrator.inference import kserve
from dalston.orchestrator.inference.health_channel import Channel
from dalston.orchestrator.inference.http import Answer, CallFailed, Code
from dalston.orchestrator.inference.turns import Turns
from dalston.orchestrator.process import traces
from dalston.orchestrator.transcription.model_requests import (
    EndOfTurnRequest,
    Hypothesis,
    SpeechRequest,
    TimedWord,
    TranscriptRequest,
)
from dalston.triton.contract import (
    PARTIAL_OUTPUTS,
    SAMPLE_RATE,
    STAGES,
    TOKEN_HEADER,
    TOKEN_VARIABLE,
    TURN_MODEL,
    VAD_MODEL,
    VARIANTS,
    WHISPER_OUTPUTS,
    WINDOWS,
    Input,
    Output,
    asleep_mark,
    whisper_model,
)

logger = logging.getLogger(__name__)

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
PROBE_DEADLINE_S = 10.0  # it may be queued after finals
LOADING_S = 600.0  # large checkpoints take minutes
LOOK_EVERY_S = 0.2  # whether it is there
_SILENCE = bytes(2 * 1600)  # 0.1 s

_FINAL_OUTPUTS = tuple(tensor.name for tensor in WHISPER_OUTPUTS)


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
SpeechAnswer = list[float] | SequenceLost
# Asks the VAD. The second argument is called with the answer: once, and later.
RequestSpeech = Callable[[SpeechRequest, Callable[[SpeechAnswer], None]], None]


async def speech_probabilities(
    request_speech: RequestSpeech, request: SpeechRequest
) -> list[float]:
    """For whoever would rather wait. Raises SequenceLost."""
    waiting: asyncio.Future[SpeechAnswer] = asyncio.get_running_loop().create_future()
    request_speech(request, lambda a: None if waiting.done() else waiting.set_result(a))
    answer = await waiting
    if isinstance(answer, SequenceLost):
        raise answer
    return answer


@dataclass(frozen=True)
class LoadedVariant:
    """What Triton serves as whisper_<variant>."""

    model_id: str
    languages: tuple[str, ...]
    translates: bool
    partials_in_flight: int  # at most, of one worker
    places: int = 1  # rows that are decoded side by side


def _ignore(_: SequenceLost) -> None:
    pass


class Triton:
    """The models of one Triton. url: "host:port" of its HTTP. token: its own, without which nothing
    is known of models that are unloaded, and none is loaded again."""

    def __init__(self, url: str, token: str | None = None):
        self._channel = Channel(url, self.probe)
        self._control = f"{TOKEN_HEADER}: {token}" if token else ""
        self._refused = False  # it has said that this is not its token
        self._speech = list[
            tuple[kserve.InferRequest, Callable[[Answer | CallFailed], None]]
        ]()  # to leave
        self._speech_left = -math.inf  # loop time, the last
        self._speech_leaves: asyncio.TimerHandle | None = None
        self.judges_turns = False  # whether it had the model for that when `variants` was asked
        self._waiting = 0  # for their turn
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
                config = kserve.read_config(page)
                if not (config.parameter("checkpoint_id") and config.parameter("languages")):
                    sentence = f"{whisper_model(variant)} was not built by `dalston models build`"
                    raise InferenceError(sentence, retryable=True)
                loaded[variant] = LoadedVariant(
                    config.parameter("checkpoint_id"),
                    tuple(config.parameter("languages").split()),
                    config.parameter("translates") == "yes",
                    config.partials_in_flight,
                    config.places,
                )
                self._seen[variant] = loaded[variant]
                one = loaded[variant]
                self._turns.setdefault(variant, Turns(one.partials_in_flight, one.places))
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
            index = await self._ask(
                self._channel.post("/v2/repository/index", header=self._control),
                kserve.read_index,
                [],
            )
            asleep = any(one.name == model and one.asleep for one in index)
        (self.asleep.add if asleep else self.asleep.discard)(model)
        return asleep

    async def load(self, model: str) -> None:
        """Have a model loaded that is asleep, if it is. Raises InferenceError.

        Its supervisor does it (triton/sleepers.py): Triton's HTTP answers nobody while it loads
        what it was asked for. To ask for the model, remove its mark. The mark comes back if
        loading fails.
        """
        if not await self.sleeps(model):
            return
        self.loading.add(model)
        try:
            path = f"/v2/systemsharedmemory/region/{asleep_mark(model)}/unregister"
            await self._ask(self._channel.post(path, header=self._control), bytes, b"")
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
        regions = await self._ask(
            self._channel.get("/v2/systemsharedmemory/status", header=self._control),
            kserve.read_regions,
            [],
        )
        return any(region.name == asleep_mark(model) for region in regions)

    async def _ask(self, page: Awaitable[bytes], read: Callable[[bytes], T], without: T) -> T:
        """What a page says; `without`, where a Triton has none. Raises InferenceError."""
        try:
            return read(await page)
        except CallFailed as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                raise _failed(error) from None
            if error.code is Code.REFUSED and self._control and not self._refused:
                self._refused = True
                logger.error(
                    "Triton %s has another %s: models that it has unloaded are missing here",
                    self.url,
                    TOKEN_VARIABLE,
                )
            return without

    async def answers_given(self, model: str) -> int | None:
        """By a model, to anybody, since it was loaded; None: it does not tell."""
        try:
            page = await self._channel.get(f"/v2/models/{model}/stats")
            return sum(
                one.inference_stats.success.count for one in kserve.read_stats(page).model_stats
            )
        except (CallFailed, msgspec.MsgspecError):
            return None

    async def probe(self, model: str) -> None:
        """Whether a model works, by asking it something small. Raises InferenceError."""
        if model == TURN_MODEL:
            await self.end_of_turn(EndOfTurnRequest(0, _SILENCE), PROBE_DEADLINE_S)
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
                await speech_probabilities(self.request_speech, request)
        except SequenceLost as error:
            raise InferenceError(str(error), retryable=True, code=error.code) from None

    def request_speech(
        self,
        request: SpeechRequest,
        on_answer: Callable[[SpeechAnswer], None],
        on_lost: Callable[[SequenceLost], None] = _ignore,
    ) -> None:
        """`on_answer` is called with the probability of each whole frame, or with why there is
        none; in that case `on_lost` is called before."""
        call = kserve.InferRequest(
            VAD_MODEL,
            (Output.PROBABILITY,),
            sequence_id=request.sequence,
            sequence_start=request.start,
            sequence_end=request.end,
        )
        call.add(Input.AUDIO, "INT16", len(request.audio) // 2, request.audio)

        def on_result(result: Answer | CallFailed) -> None:
            try:
                if isinstance(result, CallFailed):
                    raise result
                _, content = kserve.outputs(result).get(Output.PROBABILITY, ("FP32", b""))
            except CallFailed as error:
                # After any failure nobody knows whether the VAD heard this audio.
                lost = SequenceLost(_sentence(error), error.code)
                on_lost(lost)
                return on_answer(lost)
            on_answer(list(struct.unpack(f"<{len(content) // 4}f", content)))

        self._speech.append((call, on_result))
        if self._speech_leaves:
            return
        loop = asyncio.get_running_loop()
        wait = self._speech_left + SPEECH_EVERY_S - loop.time()
        # Not at once: frames come in rounds (gateway/transport/read_rounds.py), and others may be
        # read already.
        self._speech_leaves = loop.call_later(max(wait, 0), self._send_speech)

    def _send_speech(self) -> None:
        self._speech_leaves = None
        self._speech_left = asyncio.get_running_loop().time()
        asked, self._speech = self._speech, []
        for call, on_result in asked:
            self._channel.ask(call, SPEECH_DEADLINE_S, on_result)

    async def end_of_turn(
        self, request: EndOfTurnRequest, deadline_s: float = TURN_DEADLINE_S
    ) -> float:
        """How likely it is that the turn is over. Raises InferenceError."""
        call = kserve.InferRequest(TURN_MODEL, (Output.PROBABILITY,))
        call.add(Input.AUDIO, "INT16", len(request.audio) // 2, request.audio)
        try:
            outputs = await self._channel.infer(call, deadline_s)
        except CallFailed as error:
            raise InferenceError(_sentence(error), retryable=True, code=error.code) from None
        return float(kserve.value(*outputs[Output.PROBABILITY])[0])

    async def transcribe(
        self,
        request: TranscriptRequest,
        on_turn: Callable[[], TranscriptRequest] | None = None,
    ) -> Hypothesis:
        """For a variant of `variants`. on_turn: called if the request had to wait for its turn:
        what to ask instead. Raises InferenceError."""
        if request.kind == "partial":
            turns = self._turns[request.variant]
            if request.urgent and not turns.crowded:
                turns.acquire_now()
            else:
                self._waiting += 1
                try:
                    await turns.acquire()
                finally:
                    self._waiting -= 1
                request = on_turn() if on_turn else request
            outputs = await self._whisper(request, PARTIAL_DEADLINE_S, over=turns.release)
            return _hypothesis(outputs, {})
        asked = time.perf_counter()
        outputs = await self._final(request)
        spent, window = outputs[Output.STAGE_SECONDS], float(outputs[Output.WINDOW_SECONDS][0])
        if bool(outputs[Output.SUSPECT][0]):
            # Right-sized windows can harm a stock checkpoint: once more as it was trained.
            outputs = await self._final(request, full_window=True)
            spent = spent + outputs[Output.STAGE_SECONDS]
            window += float(outputs[Output.WINDOW_SECONDS][0])
        elsewhere = time.perf_counter() - asked - float(spent.sum())
        stages = dict(zip(STAGES, spent.tolist(), strict=True), queue=elsewhere)
        return replace(_hypothesis(outputs, stages), window_seconds=window)

    async def _final(self, request: TranscriptRequest, full_window: bool = False) -> dict[str, Any]:
        about = {"dalston.triton": self.url, "dalston.full_window": full_window}
        turns = self._turns[request.variant]
        if request.recorded:
            self._waiting += 1
            try:
                await turns.acquire_last()
            finally:
                self._waiting -= 1
            over = turns.release_last
        else:
            turns.acquire_now()
            over = turns.release
        with traces.span(whisper_model(request.variant), about, kind="client"):
            return await self._whisper(request, FINAL_DEADLINE_S, full_window, over)

    async def _whisper(
        self,
        request: TranscriptRequest,
        deadline_s: float,
        full_window: bool = False,
        over: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        wanted = _FINAL_OUTPUTS if request.kind == "final" else PARTIAL_OUTPUTS
        call = kserve.InferRequest(whisper_model(request.variant), wanted)
        prefix = np.array(request.prefix, "<i4").tobytes()
        draft = np.array(request.draft, "<i4").tobytes()
        samples = len(request.audio) // 2
        call.audio_s = WINDOWS[-1] if full_window else samples / SAMPLE_RATE
        call.add(Input.AUDIO, "INT16", samples, request.audio)
        call.add(Input.LANGUAGE, "BYTES", 1, kserve.string(request.language))
        call.add(Input.TASK, "BYTES", 1, kserve.string(request.task))
        call.add(Input.PROMPT, "BYTES", 1, kserve.string(request.prompt))
        call.add(Input.KEYWORDS, "BYTES", 1, kserve.string("\n".join(request.keywords)))
        call.add(Input.PREFIX, "INT32", len(request.prefix), prefix)
        call.add(Input.DRAFT, "INT32", len(request.draft), draft)
        call.add(Input.WORDS, "BOOL", 1, bytes([request.words]))
        call.add(Input.FULL_WINDOW, "BOOL", 1, bytes([full_window]))
        try:
            headers = traces.headers() if request.kind == "final" else ()
            outputs = await self._channel.infer(call, deadline_s, over, headers)
        except CallFailed as error:
            retryable = error.code not in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)
            raise InferenceError(_sentence(error), retryable, error.code) from None
        return {name: kserve.value(*output) for name, output in outputs.items()}


def _hypothesis(outputs: dict[str, Any], stages: Mapping[str, float]) -> Hypothesis:
    """Of the outputs that were asked for and have elements."""
    words = zip(
        outputs.get(Output.WORD, ()),
        outputs.get(Output.WORD_START, ()),
        outputs.get(Output.WORD_END, ()),
        outputs.get(Output.WORD_PROBABILITY, ()),
        strict=True,
    )
    return Hypothesis(
        text=outputs[Output.TEXT][0],
        tokens=tuple(map(int, outputs.get(Output.TOKENS, ()))),
        token_ends=tuple(map(int, outputs.get(Output.TOKEN_ENDS, ()))),
        token_times=tuple(map(float, outputs.get(Output.TOKEN_TIMES, ()))),
        token_logprobs=tuple(map(float, outputs.get(Output.TOKEN_LOGPROBS, ()))),
        language=outputs[Output.LANGUAGE][0],
        language_probability=float(outputs[Output.LANGUAGE_PROBABILITY][0]),
        average_logprob=float(outputs[Output.AVERAGE_LOGPROB][0])
        if Output.AVERAGE_LOGPROB in outputs
        else 0.0,
        no_speech_probability=float(outputs[Output.NO_SPEECH_PROBABILITY][0])
        if Output.NO_SPEECH_PROBABILITY in outputs
        else 0.0,
        window_seconds=float(outputs[Output.WINDOW_SECONDS][0]),
        prompt_cut=int(sum(outputs.get(Output.PROMPT_CUT, ()))),
        words=tuple(TimedWord(w, float(a), float(b), float(p)) for w, a, b, p in words),
        stages=stages,
    )


def _failed(error: CallFailed) -> InferenceError:
    return InferenceError(_sentence(error), retryable=True, code=error.code)


def _sentence(error: CallFailed) -> str:
    return f"Triton: {error}"
