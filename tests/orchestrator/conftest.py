from collections.abc import AsyncGenerator
from typing import Any

import pytest

from dalston.orchestrator.capacity.redis_client import redis_client
from dalston.orchestrator.capacity.slots import Slots


@pytest.fixture
async def client(redis_url: str) -> AsyncGenerator[Any]:
    """A real Redis that is empty."""
    client: Any = redis_client(redis_url)
    client.connection_pool.connection_kwargs["decode_responses"] = True
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def slots(client: Any) -> Slots:
    return Slots(client)
