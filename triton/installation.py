"""
A Triton Inference Server on this machine: where it is, and whether it can run with this Python.
"""

import ctypes
import importlib.util
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What NVIDIA's container calls home.
_CONTAINER = Path("/opt/tritonserver")
STUB = "triton_python_backend_stub"


class ServerError(Exception):
    """Triton cannot run here; says what to install or to change."""


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can run with this Python."""

    binary: Path
    stub: Path
    backend: Path  # folder of libtriton_python.so
    libraries: Path | None  # to be searched for libpython
    version: str


def find() -> Installation:
    """The server of NVIDIA's container, or the one in the nvidia-pytriton wheel, checked against
    this Python and what is installed in it. Raises ServerError."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ServerError(
            f"Triton runs on Linux x86-64 here, and this is {sys.platform} {platform.machine()}. "
            "Use the container (docker-compose.yml), or another machine."
        )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if (_CONTAINER / "bin" / "tritonserver").exists():
        backend = _CONTAINER / "backends" / "python"
        found = Installation(
            _CONTAINER / "bin" / "tritonserver", backend / STUB, backend, None, "container"
        )
    else:
        package = importlib.util.find_spec("pytriton")
        if package is None or package.origin is None:
            raise ServerError(
                "no Triton Inference Server: install the one from the package index with "
                "pip install 'dalston[local]', or run in NVIDIA's container"
            )
        home = Path(package.origin).parent / "tritonserver"
        found = Installation(
            home / "bin" / "tritonserver",
            home / "python_backend_stubs" / python / STUB,
            home / "backends" / "python",
            _libpython(python),
            version("nvidia-pytriton"),
        )
        _check_numpy()
    if not found.stub.exists():
        raise ServerError(
            f"this Triton has no Python backend for Python {python}: use Python 3.11 or 3.12"
        )
    for module in ("numpy", "onnxruntime", "ctranslate2"):
        if importlib.util.find_spec(module) is None:
            raise ServerError(
                f"the models need {module}, which is not installed for {sys.executable}: "
                "pip install 'dalston[triton]'"
            )
    return found


def _libpython(python: str) -> Path | None:
    """The folder to search for the shared library that the stub links; None: the system's own."""
    name = f"libpython{python}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR") or "")
    if (folder / name).exists():
        return folder
    try:
        ctypes.CDLL(name)
    except OSError:
        raise ServerError(
            f"{name} is missing, which Triton's Python backend needs: apt-get install "
            f"libpython{python} (Debian, Ubuntu), or use a Python built with --enable-shared"
        ) from None
    return None


def _check_numpy() -> None:
    try:
        installed = version("numpy")
    except PackageNotFoundError:
        return  # said by find()
    if int(installed.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy {installed} is installed, but this Triton was built against numpy 1 and would "
            "answer every request with nothing: pip install 'numpy<2'"
        )


def backend_folder(installation: Installation, folder: Path) -> Path:
    """A backend folder, made in `folder`, with the stub for this Python: Triton takes it from
    nowhere else."""
    if installation.version == "container":
        return installation.backend.parent
    python = folder / "backends" / "python"
    shutil.rmtree(python, ignore_errors=True)
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (python / name).symlink_to(installation.backend / name)
    (python / STUB).symlink_to(installation.stub)
    return python.parent.resolve()
