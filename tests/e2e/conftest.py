"""
One stack for all tests here that do it no harm: two workers of two sessions each.
"""

import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from support.stack import Stack, start_stack

from dalston.triton.process import free_port


@pytest.fixture(scope="session")
def data_dir(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the models that are built already."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "model_repository").symlink_to(model_repository)
    return folder


@pytest.fixture(scope="session")
def wyoming_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def stack(data_dir: Path, wyoming_port: int) -> Generator[Stack]:
    port = str(wyoming_port)
    stack = start_stack(
        data_dir, 2, MAX_SESSIONS="2", DALSTON_IDLE_SECONDS="20", DALSTON_WYOMING_PORT=port
    )
    yield stack
    stack.process.send_signal(signal.SIGTERM)
    assert stack.process.wait(45) == 0
