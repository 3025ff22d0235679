"""
One Triton of a fleet, and what is known of its models: which answer, which are in doubt until they
answer a probe, and which are asleep.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextvars import Context

from dalston.orchestrator.inference import metrics
from dalston.orchestrator.inference.http import Code
from dalston.orchestrator.inference.triton_client import InferenceError, LoadedVariant, Triton
from dalston.triton.contract import VAD_MODEL, VARIANTS, whisper_model

logger = logging.getLogger(__name__)

# Whisper models that answered so recently need no probe; the VAD's costs nothing.
PROBE_AFTER_S = 25.0
PROBE_FIRST_S, PROBE_LAST_S = 0.1, 1.0  # between probes of a model that failed


class Member:
    """One Triton, and what is known of its models."""

    def __init__(self, url: str, token: str | None = None):
        self.triton = Triton(url, token)
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
        """Whether a model answers a probe, or would if it were awake."""
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
        """Avoid a model until it answers a probe."""
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
