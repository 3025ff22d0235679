import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from dalston.cli.up import redis_server
from dalston.triton.process import die_with_parent, free_port

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
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(
        [*command, "--dir", str(folder)], stdout=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "Redis does not start"
            time.sleep(0.02)
    yield f"redis://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)
