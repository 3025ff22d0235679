"""
NVIDIA's perf_analyzer itself: the one on PATH, or out of the wheel that carries it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from dalston.triton.models import ModelError
from dalston.triton.sources import verify

# The last wheels that carry the binary want a newer glibc than Debian 12 and Ubuntu 22.04 have.
REQUIREMENT = "tritonclient==2.50.0"
WHEEL_SHA256 = "421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889"
MEMBER = "tritonclient-2.50.0.data/data/bin/perf_analyzer"
# What it links and systems lack; Triton's own wheel has both, under names that carry a hash.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
LONGEST_RUN_S = 300.0

console = Console(stderr=True, highlight=False)


class PerfAnalyzerError(Exception):
    """There is none that runs, or its run failed; says why, and what to do."""


@dataclass(frozen=True)
class Binary:
    path: Path
    libraries: Path | None = None  # folder to be searched for what the system lacks

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Raises PerfAnalyzerError if it takes for ever, OSError if it cannot be started."""
        environment = dict(os.environ)
        if self.libraries:
            paths = [str(self.libraries), environment.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = ":".join(path for path in paths if path)
        try:
            return subprocess.run(
                [str(self.path), *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=LONGEST_RUN_S,
            )
        except subprocess.TimeoutExpired:
            said = f"perf_analyzer was not done after {LONGEST_RUN_S:g} s"
            raise PerfAnalyzerError(said) from None


def find_binary(given: Path | None, folder: Path) -> Binary:
    """The one given, the one on PATH, or the one in NVIDIA's wheel, unpacked in `folder`.

    Raises PerfAnalyzerError.
    """
    on_path = shutil.which("perf_analyzer")
    if given is None and on_path and _why_not(binary := Binary(Path(on_path))) is None:
        return binary
    binary = Binary(given) if given else _from_wheel(folder)
    if reason := _why_not(binary):
        raise PerfAnalyzerError(f"{binary.path} cannot be run: {reason}")
    return binary


def _why_not(binary: Binary) -> str | None:
    """Why it cannot be run, if it cannot: often a library that is missing."""
    try:
        done = binary.run("--version")
    except OSError as error:
        return error.strerror
    return last_line(done.stderr) if done.returncode else None


def _from_wheel(folder: Path) -> Binary:
    package = find_spec("pytriton")
    if package is None or package.origin is None:
        raise PerfAnalyzerError(
            "perf_analyzer needs libraries that come with Triton's wheel: "
            "pip install 'dalston[local]', or give a perf_analyzer that runs by --binary"
        )
    bundled = Path(package.origin).parent.parent / "nvidia_pytriton.libs"
    binary = Binary(folder / "perf_analyzer", folder / "lib")
    assert binary.libraries
    binary.libraries.mkdir(parents=True, exist_ok=True)
    for name, pattern in LIBRARIES.items():
        link = binary.libraries / name
        if not link.exists():  # or its virtual environment is gone
            link.unlink(missing_ok=True)
            link.symlink_to(next(bundled.glob(pattern)))
    if not binary.path.exists():
        _fetch(binary.path)
    return binary


def _fetch(out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        with console.status(f"fetching {REQUIREMENT}"):
            command = [
                *(sys.executable, "-m", "pip", "download", "--quiet"),
                *("--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"),
                *("--dest", folder, REQUIREMENT),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            raise PerfAnalyzerError(
                f"{REQUIREMENT} cannot be had from the package index: {last_line(done.stderr)}. "
                f"Fetch the wheel elsewhere, and put its {MEMBER} at {out}."
            )
        try:
            verify(wheels[0], WHEEL_SHA256)
        except ModelError as error:
            raise PerfAnalyzerError(str(error)) from None
        with zipfile.ZipFile(wheels[0]) as wheel:
            unpacked = Path(wheel.extract(MEMBER, folder))
        unpacked.chmod(0o755)
        unpacked.rename(out)  # last, so that a half-written one is never run


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1].rstrip(".")
