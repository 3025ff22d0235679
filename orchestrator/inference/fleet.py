"""
Several Tritons as one: which is asked, and which is next when that one fails.

Transcripts go to the server with the fewest requests under way, and those that fail to another
one at once. A sequence of the VAD stays where it was started; when it is lost, the next one starts
elsewhere. A model that failed is avoided until it has answered a probe. If there is no other, it
is waited for, and then asked all the same.

Triton's supervisor unloads models that nobody has used for long (triton/sleepers.py). They are
loaded again when a session begins that needs them, or when a request finds them asleep; such a
request waits. Only one Triton loads the model; another follows once the first is busy.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dalston.orchestrator.inference.http import Code
from dalston.orchestrator.inference.member import Member
from dalston.orchestrator.inference.triton_client import (
    InferenceError,
    LoadedVariant,
    SequenceLost,
    SpeechAnswer,
)
from dalston.orchestrator.transcription.model_requests import (
    EndOfTurnRequest,
    Hypothesis,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.triton.contract import TURN_MODEL, VAD_MODEL, whisper_model

logger = logging.getLogger(__name__)

# For a model that fails everywhere to answer again somewhere; then it is asked as it is.
RETURN_S = 3.0
# A Whisper model that has answered nobody for so long hangs: longer than a batch of finals takes,
# and soon enough for lag that would end sessions.
MUTE_S = 4.0
# A request that a model fails so often, although it works, never succeeds. We wait between tries:
# if one of several processes of the model is dead, the others answer probes, and its supervisor
# needs a second to see it and to unload the model.
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


class Fleet:
    """Several Tritons, used as one.

    urls: of their HTTP. out_of_memory: called when a model says that it has no memory left. token:
    theirs, for models that are unloaded.
    """

    def __init__(
        self,
        urls: Sequence[str],
        out_of_memory: Callable[[], None] = _nothing,
        token: str | None = None,
    ):
        self._members = [Member(url, token) for url in urls]
        self._out_of_memory = out_of_memory
        self._sequences: dict[str, Member] = {}  # from START to END
        self._starting = set[asyncio.Task[None]]()  # sequences that wait for a VAD

    @property
    def pending(self) -> dict[str, int]:
        """Requests under way, by URL."""
        return {member.triton.url: member.triton.pending for member in self._members}

    @property
    def judges_turns(self) -> bool:
        """Whether any Triton had the model for that when `variants` was asked last."""
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
        member, tried, refusals = await self._for_transcript(model), list[Member](), 0
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
        """URL and model of every model that is unloaded."""
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

    def _sleeper(self, model: str) -> Member:
        """The member that is to load a model that sleeps everywhere."""
        asleep = [member for member in self._members if member.is_asleep(model)]
        return min(asleep, key=lambda member: (model not in member.waking, member.triton.pending))

    def mute(self, variant: str) -> bool:
        """Whether transcripts of a variant are waited for and a server answers none at all."""
        model = whisper_model(variant)
        return any(member.triton.mute_s(model) >= MUTE_S for member in self._members)

    def _another(self, model: str, tried: Sequence[Member] = ()) -> Member | None:
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

    async def _for_transcript(self, model: str) -> Member:
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

    async def _woken(self, model: str) -> Member:
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

    def _for_sequence(self) -> Member:
        held = Counter(self._sequences.values())
        working = [member for member in self._members if VAD_MODEL not in member.doubted]
        return min(working or self._members, key=lambda member: held[member])

    async def _returned(self, model: str, members: Sequence[Member]) -> None:
        """Until one of them answers again, for RETURN_S at most."""
        doubts = [member.doubted[model] for member in members if model in member.doubted]
        await asyncio.wait(doubts, timeout=RETURN_S, return_when=asyncio.FIRST_COMPLETED)
