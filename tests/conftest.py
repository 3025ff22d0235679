import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import single_triton
from support.redis_process import redis_process

# Machines are slow at times, and that proves nothing.
hypothesis.settings.register_profile("dalston", deadline=None)
hypothesis.settings.load_profile("dalston")

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def model_repository() -> Path:
    """The models as Triton serves them, of the demo profile. Read only."""
    folder = _ROOT / "build" / "model_repository"
    if not (folder / "built.json").exists():
        pytest.fail(f"{folder} is not there: run `make test`, or `make demo-models`")
    return folder


@pytest.fixture(scope="session")
def turns_repository() -> Path:
    """The same with the model that judges turns. Read only."""
    folder = _ROOT / "build" / "turns" / "model_repository"
    if not (folder / "built.json").exists():
        pytest.fail(f"{folder} is not there: run `make test`, or `dalston models build`")
    return folder


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A real Redis, empty, for tests that flush it as they like."""
    with redis_process(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url


@pytest.fixture(scope="session")
def triton_url(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The HTTP address of a real Triton with every model, for all tests that do it no harm."""
    with single_triton.running(model_repository, tmp_path_factory.mktemp("triton"), 60) as url:
        yield url


@dataclass(frozen=True)
class FailingTriton:
    """A real one, whose whisper_fast answers with the error that stands in a file, if there is
    one."""

    url: str
    error: Path


@pytest.fixture(scope="module")
def failing_triton(
    model_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[FailingTriton]:
    repository = tmp_path_factory.mktemp("failing")
    shutil.copytree(model_repository / "silero_vad", repository / "silero_vad")
    whisper = repository / "whisper_fast"
    (whisper / "1").mkdir(parents=True)
    shutil.copy(model_repository / "whisper_fast" / "config.pbtxt", whisper)
    shutil.copy(_ROOT / "tests" / "support" / "failing_model.py", whisper / "1" / "model.py")
    with single_triton.running(repository, tmp_path_factory.mktemp("triton"), 60) as url:
        yield FailingTriton(url, whisper / "error")
