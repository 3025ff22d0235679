"""
Models that nobody has used for long are unloaded, and loaded again when somebody wants them.

A model that is asleep has a mark in Triton, a region of shared memory. Whoever wants the model
takes the mark away (orchestrator/inference/triton_client.py); then it is loaded here.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from tritonclient.grpc import service_pb2

from dalston.triton import control
from dalston.triton.contract import VARIANTS, asleep_mark, whisper_model
from dalston.triton.idleness import Idleness
from dalston.triton.installation import ServerError

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
# How long the process of an unloaded model has to end. It takes 3 s, or as long as its running
# requests. What still runs after that is killed.
ENDING_S = 30.0


@dataclass
class _Asleep:
    """A model that was unloaded because nobody used it."""

    since: float
    old: set[psutil.Process]  # that served it, and end later


class Sleepers:
    """The models of one Triton that are asleep, and those that may be put to sleep."""

    def __init__(
        self,
        models: Sequence[str],
        idleness: Idleness,
        memory: str,
        processes: Callable[[], dict[str, set[psutil.Process]]],
    ):
        """memory: how the names of our shared memory begin. processes: living ones, by model."""
        self._models, self._idleness, self._memory = models, idleness, memory
        self._processes = processes
        self._asleep: dict[str, _Asleep] = {}  # by model

    def clear(self) -> None:
        """A new server has loaded them all."""
        self._asleep.clear()

    def awake(self) -> list[str]:
        return [model for model in self._models if model not in self._asleep]

    async def idle(self, stub: Any) -> list[str]:
        """Whisper models that nobody has used for long."""
        idle = list[str]()
        whisper = {whisper_model(variant) for variant in VARIANTS}
        for model in self.awake():
            if model not in whisper:
                continue  # the others are small, and a session asks them at once
            with contextlib.suppress(grpc.aio.AioRpcError):  # Server._silent sees what that means
                self._idleness.counted(model, await control.answers(stub, model), time.monotonic())
                if self._idleness.is_idle(model, time.monotonic()):
                    idle.append(model)
        return idle

    async def put_to_sleep(self, stub: Any, model: str, stubs: set[psutil.Process]) -> bool:
        """Unload a model. Returns whether it is.

        What it was asked before is still answered. What it is asked now is refused, and whoever
        asks has it loaded again.
        """
        idle_s = self._idleness.idle_s(model, time.monotonic())
        try:
            await self._mark(stub, model)  # first: who finds it unloaded looks for the mark
            await control.unload(stub, model)
        except grpc.aio.AioRpcError as error:
            # It is only memory: no reason to harm whoever uses the others.
            logger.warning("%s cannot be unloaded: %s", model, error.details())
            self._idleness.loaded(model, time.monotonic())
            return False
        self._asleep[model] = _Asleep(time.monotonic(), stubs)
        logger.info("%s is unloaded: nobody has used it for %.0f s", model, idle_s)
        return True

    async def _mark(self, stub: Any, model: str) -> None:
        """Mark a model as asleep. Raises AioRpcError."""
        # Each model needs its own file: for a second region with the same key Triton reuses the
        # first, which is closed.
        memory = f"{self._memory}{asleep_mark(model)}"
        (SHARED_MEMORY / memory).write_bytes(b"\0")
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=asleep_mark(model), key=f"/{memory}", byte_size=1
        )
        await stub.SystemSharedMemoryRegister(request, timeout=5)

    async def wanted(self, stub: Any) -> list[str]:
        """The models that are asleep and whose mark somebody has taken away."""
        if not self._asleep:
            return []
        request = service_pb2.SystemSharedMemoryStatusRequest()
        try:
            marks = (await stub.SystemSharedMemoryStatus(request, timeout=5)).regions
        except grpc.aio.AioRpcError:
            return []  # Server._silent sees what that means
        return [model for model in self._asleep if asleep_mark(model) not in marks]

    async def wake(self, stub: Any, model: str) -> set[psutil.Process]:
        """Load a model again.

        Returns the processes that serve it now, those included that died since they were started;
        none if it cannot be loaded, and then it is marked again. Raises ServerError if Triton does
        not answer.
        """
        asleep = self._asleep[model]
        began = time.monotonic()
        try:
            try:
                serving = await control.load(stub, model, lambda: self._processes()[model])
            except grpc.aio.AioRpcError as error:
                logger.error("%s cannot be loaded: %s", model, error.details())
                await self._mark(stub, model)
                return set()
        except grpc.aio.AioRpcError as error:
            raise ServerError(f"{model} cannot be loaded: {error.details()}") from None
        del self._asleep[model]
        now = time.monotonic()
        self._idleness.loaded(model, now)
        slept_s, took_s = began - asleep.since, now - began
        logger.info("%s is loaded again, in %.1f s, after %.0f s", model, took_s, slept_s)
        return serving

    def end_old(self, living: dict[str, set[psutil.Process]]) -> None:
        """Kill processes of unloaded models that this Triton never ends (docs/log.md)."""
        for model, asleep in self._asleep.items():
            left = living[model] & asleep.old
            if left and time.monotonic() - asleep.since > ENDING_S:
                logger.warning("%s: %d processes do not end; they are killed", model, len(left))
                for process in left:
                    control.kill(process)
