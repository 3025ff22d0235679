from pathlib import Path

import pytest

from dalston.triton import conversion, graphs

_DEMO = Path(__file__).parents[2] / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def hugging_face() -> Path:
    """The demo checkpoint as it is committed. Read only."""
    return _DEMO


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as it is built for a CPU. Read only."""
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    conversion.convert(_DEMO, folder, "int8_float32")
    graphs.write(folder)
    return folder
