import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from redis_process import redis_process

from dalston.triton.installation import ServerError
from dalston.triton.probe import probe_all
from dalston.triton.process import dies_with_us, free_port

# Machines are slow at times, and that proves nothing.
hypothesis.settings.register_profile("dalston", deadline=None)
hypothesis.settings.load_profile("dalston")

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def model_repository() -> Path:
    """The models as Triton serves them, of the demo profile. Read only."""
    folder = _ROOT / "build" / "model_repository"
    if not (folder / "built.json").exists():
        pytest.fail(f"{folder} is not there: run `make test`, or `dalston models build`")
    return folder


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A real Redis, empty, for tests that flush it as they like."""
    with redis_process(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url


@contextmanager
def _triton(repository: Path, folder: Path) -> Generator[str]:
    grpc_port, http_port = free_port(), free_port()
    command = [sys.executable, "-m", "dalston.cli.main", "triton", "--run-dir", str(folder)]
    command += ["--repository", str(repository), "--grpc-port", str(grpc_port)]
    command += ["--http-port", str(http_port), "--metrics-port", str(free_port())]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(dies_with_us(command), stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while True:
        try:
            asyncio.run(probe_all(f"127.0.0.1:{grpc_port}"))
            break
        except ServerError:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
    yield f"127.0.0.1:{http_port}"
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="session")
def triton_url(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The HTTP address of a real Triton with every model, for all tests that do it no harm."""
    with _triton(model_repository, tmp_path_factory.mktemp("triton")) as url:
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
    with _triton(repository, tmp_path_factory.mktemp("triton")) as url:
        yield FailingTriton(url, whisper / "error")
