"""
Which models may be put to sleep. With a real Triton: test_server.py and tests/e2e/test_asleep.py.
"""

import time
from typing import Any

from tritonclient.grpc import service_pb2

from dalston.triton.idleness import Idleness
from dalston.triton.sleepers import Sleepers

MODELS = ["end_of_turn", "silero_vad", "whisper_fast"]


class Unused:
    """A Triton that nobody asks anything."""

    async def ModelStatistics(self, request: Any, timeout: float) -> Any:  # noqa: ASYNC109
        return service_pb2.ModelStatisticsResponse()


async def test_only_whisper_models_are_put_to_sleep() -> None:
    # A session asks the others at once, and nobody would wake them.
    idleness = Idleness(after_s=0.0)
    for model in MODELS:
        idleness.loaded(model, time.monotonic() - 1)
    sleepers = Sleepers(MODELS, idleness, "x_", lambda: {})
    assert await sleepers.idle(Unused()) == ["whisper_fast"]
