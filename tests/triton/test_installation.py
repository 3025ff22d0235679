import ctypes
import os
import platform
import sys
import sysconfig
from pathlib import Path

import pytest

from dalston.triton import installation
from dalston.triton.installation import ServerError, find

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_the_server_in_the_wheel_is_found_with_all_it_needs():
    found = find()
    assert os.access(found.binary, os.X_OK)
    assert os.access(found.stub, os.X_OK)
    assert (found.backend / "libtriton_python.so").exists()
    assert found.version != "container"


@pytest.mark.parametrize(
    ("system", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "aarch64")]
)
def test_another_platform_is_refused_with_what_to_use_instead(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str
):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ServerError, match=rf"this is {system} {machine}\. Use the container"):
        find()


def test_without_a_server_the_sentence_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pytriton", None)
    with pytest.raises(ServerError, match=r"pip install 'dalston\[local\]'"):
        find()


def test_a_python_without_a_stub_is_refused_with_the_pythons_that_have_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "pytriton").mkdir()
    (tmp_path / "pytriton" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(
        ServerError, match=f"no Python backend for Python {PYTHON}: use Python 3.11 or 3.12"
    ):
        find()


def test_a_python_without_its_library_is_refused_with_the_package_that_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: str(tmp_path))  # pyright: ignore
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with pytest.raises(ServerError, match=f"apt-get install libpython{PYTHON}"):
        find()


def test_a_library_that_the_system_finds_needs_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: str(tmp_path))  # pyright: ignore
    monkeypatch.setattr(ctypes, "CDLL", lambda _: None)  # pyright: ignore
    assert find().libraries is None


def test_numpy_2_is_refused_since_every_answer_would_be_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    about = tmp_path / "numpy-2.3.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.3.1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ServerError, match=r"numpy 2\.3\.1 is installed.*pip install 'numpy<2'"):
        find()


@pytest.mark.parametrize("module", ["numpy", "onnxruntime", "ctranslate2"])
def test_a_library_the_models_need_is_named_if_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, module: str
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ServerError, match=rf"the models need {module}.*'dalston\[triton\]'"):
        find()


def test_the_server_of_nvidias_container_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for path in ("bin/tritonserver", "backends/python/triton_python_backend_stub"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    monkeypatch.setattr(installation, "_CONTAINER", tmp_path)
    found = find()
    assert found.binary == tmp_path / "bin" / "tritonserver"
    assert found.version == "container"
