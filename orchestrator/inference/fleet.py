"""
Several Tritons as one: who is asked, and who next when that one fails.

Transcripts go to the server with the fewest requests under way, and those that fail to another
one at once. A sequence of the VAD stays where it was started; when it is lost, the next one starts
elsewhere. A model that failed is avoided until it has answered a probe. If there is no other, it
is waited for, and then asked all the same.

Triton's supervisor unloads models that nobody has used for long (triton/server.py). They are loaded
again when a session begins that needs them, or when a request finds them asleep; then it waits.
One of several Tritons does, until it is busy.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context

from dalston.orchestrator.inference import metrics
from dalston.orchestrator.inference.http import Code
from dalston.orchestrator.inference.triton_client import (
    InferenceError,
    LoadedVariant,
    SequenceLost,
    SpeechAnswer,
    Triton,
)
from dalston.orchestrator.transcription.model_requests import (
    EndOfTurnRequest,
    Hypothesis,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.triton.contract import TURN_MODEL, VAD_MODEL, VARIANTS, whisper_model

logger = logging.getLogger(__name__)

# Whisper models that answered so recently need no probe; the VAD's costs nothing.
PROBE_AFTER_S = 25.0
PROBE_FIRST_S, PROBE_LAST_S = 0.1, 1.0  # between probes of a model that failed
# For a model that fails everywhere to answer again somewhere; then it is asked as it is.
RETURN_S = 3.0
# A Whisper model that has answered nobody for so long hangs: longer than a batch of finals takes,
# and soon enough for lag that would end sessions.
MUTE_S = 4.0
# What a model that works fails on so often will never succeed. In between it is waited: if one of
# several processes of the model is dead, the others answer probes, and its supervisor needs a
# second to see it and to unload the model.
REFUSALS, REFUSED_S = 2, 1.5
# Of the VAD, in good order: it was started again, or nobody used the sequence for long.
_FORGOTTEN = (Code.NOT_FOUND, Code.INVALID_ARGUMENT)

# Of CUDA, cuBLAS and cuDNN, and ONNX Runtime.
_RAN_OUT = re.compile(r"out of memory|STATUS_ALLOC_FAILED|failed to allocate memory", re.IGNORECASE)


def ran_out_of_memory(sentence: str) -> bool:
    """Whether a model's error says that there was no memory."""
    return _RAN_OUT.search(sentence) is not None


def _nothing() -> None:
    pass


class _Member:
    """One Triton, and what is known of its models."""

    def __init__(self, url: str):
        self.triton = Triton(url)
        self.variants: Mapping[str, LoadedVariant] = {}
        self.doubted: dict[str, asyncio.Task[None]] = {}  # models; until they answer
        self.answered: dict[str, float] = {}  # models; when, last
        self._given: dict[str, int] = {}  # models; answers, when it was last looked
        self.waking: dict[str, asyncio.Task[None]] = {}  # models; until they are loaded

    @property
    def models(self) -> list[str]:
        return [VAD_MODEL, *(whisper_model(v) for v in VARIANTS if v in self.variants)]

    async def close(self) -> None:
        tasks = [*self.doubted.values(), *self.waking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.triton.close()

    async def look(self) -> None:
        """Whether sessions would work here. Raises InferenceError."""
        try:
            self.variants = await self.triton.variants()
        except InferenceError:
            for model in self.models:
                self.doubt(model)
            raise
        finally:
            for model in self.triton.asleep - set(self.models):
                self.wake(model)  # what it can do is known only when it is loaded
        for model in self.models:
            if model in self.doubted:
                raise InferenceError(f"{model} of {self.triton.url} fails", retryable=True)
            if self.is_asleep(model):
                continue
            if model != VAD_MODEL:
                await self._look_at_answers(model)
            answered = self.answered.get(model, 0.0)
            if model == VAD_MODEL or time.monotonic() - answered > PROBE_AFTER_S:
                if not await self.answers(model):
                    self.doubt(model)
                    sentence = f"{model} of {self.triton.url} does not answer"
                    raise InferenceError(sentence, retryable=True)

    async def _look_at_answers(self, model: str) -> None:
        """One that answers others needs no probe, which would keep it from being unloaded."""
        given = await self.triton.answers_given(model)
        if given is None:
            return
        if given > self._given.get(model, given):
            self.answered[model] = time.monotonic()
        self._given[model] = given

    def is_asleep(self, model: str) -> bool:
        return model in self.triton.asleep

    def is_busy(self, model: str) -> bool:
        """Whether it has as much to do as keeps all instances of a Whisper model busy."""
        (variant,) = (v for v in self.variants if whisper_model(v) == model)
        return self.triton.pending >= self.variants[variant].partials_in_flight

    def wake(self, model: str) -> asyncio.Task[None]:
        """The task that loads it; it fails with InferenceError."""

        def over(waking: asyncio.Task[None]) -> None:
            del self.waking[model]
            if not waking.cancelled():
                waking.exception()  # it is told already, and perhaps nobody waits for it

        if model not in self.waking:
            # For all that wait, not for the session that happened to come first.
            waking = asyncio.create_task(self._wake(model), context=Context())
            self.waking[model] = waking
            waking.add_done_callback(over)
        return self.waking[model]

    async def _wake(self, model: str) -> None:
        began = time.monotonic()
        logger.info("%s of %s is asleep: it is loaded", model, self.triton.url)
        try:
            await self.triton.load(model)
        except InferenceError as error:
            logger.warning("%s of %s cannot be loaded: %s", model, self.triton.url, error)
            metrics.LOADS_FAILED.labels(self.triton.url, model).inc()
            raise
        took = time.monotonic() - began
        self.answered[model] = time.monotonic()
        metrics.LOADED.labels(self.triton.url, model).observe(took)
        logger.info("%s of %s is awake after %.1f s", model, self.triton.url, took)

    async def answers(self, model: str) -> bool:
        """Whether it does, or would if it were awake."""
        try:
            await self.triton.probe(model)
        except InferenceError as error:
            return await self.fell_asleep(model, error)
        self.answered[model] = time.monotonic()
        return True

    async def fell_asleep(self, model: str, failure: InferenceError) -> bool:
        """Whether a model failed because it is unloaded."""
        if failure.code is not Code.NOT_FOUND or model == VAD_MODEL:
            return False
        try:
            return await self.triton.sleeps(model)
        except InferenceError:
            return False

    def doubt(self, model: str) -> None:
        """Avoid it until it answers."""
        if model not in self.doubted:
            metrics.AVOIDED.labels(self.triton.url, model).inc()
            # Not about the session that met it: not in its log lines and traces.
            doubt = self._until_it_answers(model)
            self.doubted[model] = asyncio.create_task(doubt, context=Context())

    async def _until_it_answers(self, model: str) -> None:
        began, wait = time.monotonic(), PROBE_FIRST_S
        try:
            while not await self.answers(model):
                if wait == PROBE_FIRST_S:
                    logger.warning("%s of %s does not answer: avoided", model, self.triton.url)
                await asyncio.sleep(wait)
                wait = min(2 * wait, PROBE_LAST_S)
        finally:
            del self.doubted[model]
        away = time.monotonic() - began
        logger.info("%s of %s answers, %.1f s after it failed", model, self.triton.url, away)


class Fleet:
    """urls: of the Tritons' HTTP. out_of_memory: called when a model says so."""

    def __init__(self, urls: Sequence[str], out_of_memory: Callable[[], None] = _nothing):
        self._members = [_Member(url) for url in urls]
        self._out_of_memory = out_of_memory
        self._sequences: dict[str, _Member] = {}  # from START to END
        self._starting = set[asyncio.Task[None]]()  # sequences that wait for a VAD

    @property
    def pending(self) -> dict[str, int]:
        """Requests under way, by URL."""
        return {member.triton.url: member.triton.pending for member in self._members}

    @property
    def judges_turns(self) -> bool:
        """Whether any has the model for that; of `variants`."""
        return any(member.triton.judges_turns for member in self._members)

    async def close(self) -> None:
        for starting in self._starting:
            starting.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for member in self._members:
            await member.close()

    async def variants(self) -> Mapping[str, LoadedVariant]:
        """What is served by those that work. Raises InferenceError if none does."""
        looks = await asyncio.gather(
            *(member.look() for member in self._members), return_exceptions=True
        )
        for look in looks:
            if look is not None and not isinstance(look, InferenceError):
                raise look
        working = [m for m, look in zip(self._members, looks, strict=True) if look is None]
        if not working:
            raise next(look for look in looks if look is not None)
        served: dict[str, LoadedVariant] = {}
        for member in working:
            served = {**member.variants, **served}
        return served

    def request_speech(
        self, request: SpeechRequest, on_answer: Callable[[SpeechAnswer], None]
    ) -> None:
        """`on_answer` is called with the probability of each whole frame, or with why there is
        none."""
        if request.start and all(VAD_MODEL in member.doubted for member in self._members):
            starting = asyncio.create_task(self._request_speech_later(request, on_answer))
            self._starting.add(starting)
            starting.add_done_callback(self._starting.discard)
        else:
            self._request_speech(request, on_answer)

    async def _request_speech_later(
        self, request: SpeechRequest, on_answer: Callable[[SpeechAnswer], None]
    ) -> None:
        await self._returned(VAD_MODEL, self._members)
        self._request_speech(request, on_answer)

    def _request_speech(
        self, request: SpeechRequest, on_answer: Callable[[SpeechAnswer], None]
    ) -> None:
        if request.start:
            self._sequences[request.sequence] = self._for_sequence()
        member = self._sequences.get(request.sequence)
        if member is None:
            lost = SequenceLost(f"the sequence {request.sequence} was not started")
            asyncio.get_running_loop().call_soon(on_answer, lost)
            return
        if request.end:
            del self._sequences[request.sequence]

        def on_lost(lost: SequenceLost) -> None:
            self._sequences.pop(request.sequence, None)
            if ran_out_of_memory(str(lost)):
                self._out_of_memory()
            if lost.code not in _FORGOTTEN:
                member.doubt(VAD_MODEL)

        member.triton.request_speech(request, on_answer, on_lost)

    async def end_of_turn(self, request: EndOfTurnRequest) -> float:
        """How likely it is that the turn is over. Asked once, of the least busy that answers: for
        another try there is no time. Raises InferenceError."""
        answering = [
            member
            for member in self._members
            if member.triton.judges_turns and TURN_MODEL not in member.doubted
        ]
        if not answering:
            raise InferenceError(f"no Triton has {TURN_MODEL} that answers", retryable=True)
        member = min(answering, key=lambda member: member.triton.pending)
        try:
            return await member.triton.end_of_turn(request)
        except InferenceError:
            member.doubt(TURN_MODEL)
            raise

    async def transcribe(
        self,
        request: TranscriptRequest,
        on_turn: Callable[[], TranscriptRequest] | None = None,
    ) -> Hypothesis:
        """For a variant of `variants`. on_turn: called if the request had to wait for its turn:
        what to ask instead. Raises InferenceError."""
        model = whisper_model(request.variant)
        member, tried, refusals = await self._for_transcript(model), list[_Member](), 0
        while True:
            try:
                hypothesis = await member.triton.transcribe(request, on_turn)
            except InferenceError as error:
                failure = error
            else:
                member.answered[model] = time.monotonic()
                return hypothesis
            if await member.fell_asleep(model, failure):
                member = await self._for_transcript(model)
                continue
            no_memory = ran_out_of_memory(str(failure))
            if no_memory:
                self._out_of_memory()
            if request.kind == "partial":  # another is due soon, and that it was late is no wonder
                late = failure.code is Code.DEADLINE_EXCEEDED
                if failure.retryable and not no_memory and not late:
                    member.doubt(model)
                raise failure
            if not failure.retryable:
                raise failure
            tried.append(member)
            other = self._another(model, tried)
            refused = failure.code is Code.INTERNAL and not no_memory
            if other is None and refused and await member.answers(model):
                # It works, but not on this audio.
                refusals += 1
                if refusals == REFUSALS:
                    raise InferenceError(str(failure), retryable=False, code=failure.code)
                await asyncio.sleep(REFUSED_S)
                other = member
            elif not no_memory:
                member.doubt(model)
            if other is None:
                raise failure
            logger.warning("%s; asked %s", failure, other.triton.url)
            member = other

    def asleep(self, variant: str) -> bool:
        """Whether every Triton that works has it unloaded."""
        model = whisper_model(variant)
        return self._another(model) is None and any(m.is_asleep(model) for m in self._members)

    def sleeping(self) -> list[tuple[str, str]]:
        """URL and model of all that are unloaded."""
        return [(m.triton.url, model) for m in self._members for model in sorted(m.triton.asleep)]

    def wake(self, variant: str) -> None:
        """Have it loaded where it is asleep, if it is so everywhere."""
        model = whisper_model(variant)
        if self.asleep(variant):
            self._sleeper(model).wake(model)

    def loading(self, variant: str) -> bool:
        """Whether transcripts of a variant wait for it to be loaded."""
        model = whisper_model(variant)
        return any(model in m.triton.loading for m in self._members) and self.asleep(variant)

    def _sleeper(self, model: str) -> _Member:
        """The one to wake."""
        asleep = [member for member in self._members if member.is_asleep(model)]
        return min(asleep, key=lambda member: (model not in member.waking, member.triton.pending))

    def mute(self, variant: str) -> bool:
        """Whether transcripts of a variant are waited for and a server answers none at all."""
        model = whisper_model(variant)
        return any(member.triton.mute_s(model) >= MUTE_S for member in self._members)

    def _another(self, model: str, tried: Sequence[_Member] = ()) -> _Member | None:
        """The least busy of those with this model that are thought to work."""
        working = [
            member
            for member in self._members
            if model in member.models
            and not member.is_asleep(model)
            and model not in member.doubted
            and member not in tried
        ]
        return min(working, key=lambda member: member.triton.pending, default=None)

    async def _for_transcript(self, model: str) -> _Member:
        if member := self._another(model):
            if member.is_busy(model) and any(other.is_asleep(model) for other in self._members):
                self._sleeper(model).wake(model)
            return member
        serving = [member for member in self._members if model in member.models]
        if not serving:
            raise InferenceError(f"no Triton has {model}", retryable=True)
        if any(member.is_asleep(model) for member in serving):
            return await self._woken(model)
        await self._returned(model, serving)
        return self._another(model) or min(serving, key=lambda member: member.triton.pending)

    async def _woken(self, model: str) -> _Member:
        """The first that has this model again, loaded for us or no more in doubt.

        Raises InferenceError if it cannot be loaded.
        """
        member = self._sleeper(model)
        loading = member.wake(model)
        doubts = [there.doubted[model] for there in self._members if model in there.doubted]
        while not loading.done() and not self._another(model):
            waited = [loading, *(doubt for doubt in doubts if not doubt.done())]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if other := self._another(model):
            return other
        await loading  # raises
        return member

    def _for_sequence(self) -> _Member:
        held = Counter(self._sequences.values())
        working = [member for member in self._members if VAD_MODEL not in member.doubted]
        return min(working or self._members, key=lambda member: held[member])

    async def _returned(self, model: str, members: Sequence[_Member]) -> None:
        """Until one of them answers again, for RETURN_S at most."""
        doubts = [member.doubted[model] for member in members if model in member.doubted]
        await asyncio.wait(doubts, timeout=RETURN_S, return_when=asyncio.FIRST_COMPLETED)
