"""
Several Tritons as one: who is asked, and who next when that one fails.

Transcripts go to the server with the fewest requests under way, and those that fail to another
one at once. A sequence of the VAD stays where it was started; when it is lost, the next one starts
elsewhere. A model that failed is avoided until it has answered a probe. If there is no other, it
is waited for, and then asked all the same.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context

from dalston.orchestrator import memory, metrics
from dalston.orchestrator.inference import (
    Heard,
    InferenceError,
    LoadedVariant,
    SequenceLost,
    Triton,
)
from dalston.orchestrator.requests import (
    Hypothesis,
    SpeechRequest,
    TranscriptRequest,
    TurnRequest,
)
from dalston.orchestrator.wire import Code
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


def _nothing() -> None:
    pass


class _Member:
    """One Triton, and what is known of its models."""

    def __init__(self, url: str):
        self.triton = Triton(url)
        self.variants: Mapping[str, LoadedVariant] = {}
        self.doubted: dict[str, asyncio.Task[None]] = {}  # models; until they answer
        self.answered: dict[str, float] = {}  # models; when, last

    @property
    def models(self) -> list[str]:
        return [VAD_MODEL, *(whisper_model(v) for v in VARIANTS if v in self.variants)]

    async def close(self) -> None:
        doubts = [*self.doubted.values()]
        for doubt in doubts:
            doubt.cancel()
        await asyncio.gather(*doubts, return_exceptions=True)
        await self.triton.close()

    async def look(self) -> None:
        """Whether sessions would work here. Raises InferenceError."""
        try:
            self.variants = await self.triton.variants()
        except InferenceError:
            for model in self.models:
                self.doubt(model)
            raise
        for model in self.models:
            if model in self.doubted:
                raise InferenceError(f"{model} of {self.triton.url} fails", retryable=True)
            answered = self.answered.get(model, 0.0)
            if model == VAD_MODEL or time.monotonic() - answered > PROBE_AFTER_S:
                if not await self.answers(model):
                    self.doubt(model)
                    sentence = f"{model} of {self.triton.url} does not answer"
                    raise InferenceError(sentence, retryable=True)

    async def answers(self, model: str) -> bool:
        try:
            await self.triton.probe(model)
        except InferenceError:
            return False
        self.answered[model] = time.monotonic()
        return True

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

    def hear(self, request: SpeechRequest, tell: Callable[[Heard], None]) -> None:
        """`tell` is called with the probability of each whole frame, or with why there is none."""
        if request.start and all(VAD_MODEL in member.doubted for member in self._members):
            starting = asyncio.create_task(self._hear_later(request, tell))
            self._starting.add(starting)
            starting.add_done_callback(self._starting.discard)
        else:
            self._hear(request, tell)

    async def _hear_later(self, request: SpeechRequest, tell: Callable[[Heard], None]) -> None:
        await self._returned(VAD_MODEL, self._members)
        self._hear(request, tell)

    def _hear(self, request: SpeechRequest, tell: Callable[[Heard], None]) -> None:
        if request.start:
            self._sequences[request.sequence] = self._for_sequence()
        member = self._sequences.get(request.sequence)
        if member is None:
            lost = SequenceLost(f"the sequence {request.sequence} was not started")
            asyncio.get_running_loop().call_soon(tell, lost)
            return
        if request.end:
            del self._sequences[request.sequence]

        def told(heard: Heard) -> None:
            if isinstance(heard, SequenceLost):
                self._sequences.pop(request.sequence, None)
                if memory.ran_out(str(heard)):
                    self._out_of_memory()
                if heard.code not in _FORGOTTEN:
                    member.doubt(VAD_MODEL)
            tell(heard)

        member.triton.hear(request, told)

    async def turn_over(self, request: TurnRequest) -> float:
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
            return await member.triton.turn_over(request)
        except InferenceError:
            member.doubt(TURN_MODEL)
            raise

    async def transcribe(self, request: TranscriptRequest) -> Hypothesis:
        """For a variant of `variants`. Raises InferenceError."""
        model = whisper_model(request.variant)
        member, tried, refusals = await self._for_transcript(model), list[_Member](), 0
        while True:
            try:
                hypothesis = await member.triton.transcribe(request)
            except InferenceError as error:
                failure = error
            else:
                member.answered[model] = time.monotonic()
                return hypothesis
            no_memory = memory.ran_out(str(failure))
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

    def mute(self, variant: str) -> bool:
        """Whether transcripts of a variant are waited for and a server answers none at all."""
        model = whisper_model(variant)
        return any(member.triton.mute_s(model) >= MUTE_S for member in self._members)

    def _another(self, model: str, tried: Sequence[_Member] = ()) -> _Member | None:
        """The least busy of those with this model that are thought to work."""
        working = [
            member
            for member in self._members
            if model in member.models and model not in member.doubted and member not in tried
        ]
        return min(working, key=lambda member: member.triton.pending, default=None)

    async def _for_transcript(self, model: str) -> _Member:
        if member := self._another(model):
            return member
        serving = [member for member in self._members if model in member.models]
        if not serving:
            raise InferenceError(f"no Triton has {model}", retryable=True)
        await self._returned(model, serving)
        return self._another(model) or min(serving, key=lambda member: member.triton.pending)

    def _for_sequence(self) -> _Member:
        held = Counter(self._sequences.values())
        working = [member for member in self._members if VAD_MODEL not in member.doubted]
        return min(working or self._members, key=lambda member: held[member])

    async def _returned(self, model: str, members: Sequence[_Member]) -> None:
        """Until one of them answers again, for RETURN_S at most."""
        doubts = [member.doubted[model] for member in members if model in member.doubted]
        await asyncio.wait(doubts, timeout=RETURN_S, return_when=asyncio.FIRST_COMPLETED)
