from collections.abc import AsyncGenerator

import pytest
from support.fronted import Gateway, gateway_over
from support.guarded import Start, starting


@pytest.fixture
async def gateway(redis_url: str) -> AsyncGenerator[Gateway]:
    async with gateway_over(redis_url) as gateway:
        yield gateway


@pytest.fixture
async def start(redis_url: str) -> AsyncGenerator[Start]:
    async with starting(redis_url) as start:
        yield start
