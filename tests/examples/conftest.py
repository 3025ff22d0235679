from collections.abc import AsyncGenerator

import pytest
from support.fronted import Gateway, gateway_over


@pytest.fixture
async def gateway(redis_url: str) -> AsyncGenerator[Gateway]:
    async with gateway_over(redis_url) as gateway:
        yield gateway
