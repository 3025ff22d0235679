"""
The manifest of models (models.toml), and how their files are had: bundled, from a folder, from
the Hugging Face hub, from a package of the Python index.

A file is what its SHA-256 in the manifest says, or it is not used. HF_HUB_OFFLINE, HF_HOME,
HF_ENDPOINT and HF_TOKEN mean what they mean to every tool of the hub.
"""

import hashlib
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from dalston.triton.contract import VARIANTS
from dalston.triton.conversion import is_hugging_face

_HERE = Path(__file__).resolve().parent
MANIFEST = _HERE / "models.toml"
# Beside the package: a link in a checkout, package data in a wheel.
BUNDLED = Path(__file__).parent.parent / "demo"

_CTRANSLATE2_FILES = ("model.bin", "config.json")
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")


class ModelError(Exception):
    """A model that cannot be had, and what to do about it."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and where they come from: one of `bundled`, `folder` and `hub`."""

    id: str
    windows: Literal["right-sized", "full"] = "right-sized"
    languages: tuple[str, ...] = ()  # empty: all that the vocabulary names
    bundled: str | None = None  # a folder beside this package
    folder: Path | None = None
    hub: str | None = None  # owner/name
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])  # by file

    @property
    def source(self) -> str:
        if self.hub:
            return f"{self.hub}@{(self.revision or '')[:8]}"
        return str(self.folder) if self.folder else "comes with dalston"


@dataclass(frozen=True)
class Served:
    """A variant of a profile: a checkpoint and how it is run."""

    checkpoint: Checkpoint
    compute_type: str
    beam_size: int
    device: Literal["cpu", "gpu"]
    instances: int | Literal["cores"]


@dataclass(frozen=True)
class SileroFile:
    requirement: str
    member: str
    sha256: str


def silero(manifest: Path = MANIFEST) -> SileroFile:
    return TypeAdapter(SileroFile).validate_python(_read(manifest)["silero"])


def profiles(manifest: Path = MANIFEST) -> dict[str, dict[str, Served]]:
    """Profile -> variant -> what is served."""
    data = _read(manifest)
    checkpoint, served = TypeAdapter(Checkpoint), TypeAdapter(Served)
    checkpoints = {
        id: checkpoint.validate_python({"id": id, **fields})
        for id, fields in data["checkpoints"].items()
    }
    return {
        profile: {
            variant: served.validate_python(
                {**fields, "checkpoint": checkpoints[fields["checkpoint"]]}
            )
            for variant, fields in variants.items()
        }
        for profile, variants in data["profiles"].items()
    }


def _read(manifest: Path) -> dict[str, Any]:
    return tomllib.loads(manifest.read_text("utf-8"))


def parse_override(text: str) -> tuple[str, Path]:
    """The variant and folder of "fast=/path/to/checkpoint". Raises ModelError."""
    variant, _, path = text.partition("=")
    if not path or variant not in VARIANTS:
        raise ModelError(f"{text!r}: write VARIANT=FOLDER, VARIANT one of {', '.join(VARIANTS)}")
    return variant, Path(path)


def local_checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder.resolve().name, folder=folder)


# --- fetching ------------------------------------------------------------------------------------


def fetch(checkpoint: Checkpoint) -> Path:
    """The folder with the checkpoint's files, downloaded if need be and verified.

    It is a CTranslate2 folder, or one of Hugging Face for conversion. Raises ModelError.
    """
    if checkpoint.hub:
        folder = _from_hub(checkpoint)
    elif checkpoint.bundled:
        folder = BUNDLED / checkpoint.bundled
    else:
        assert checkpoint.folder
        folder = checkpoint.folder
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder")
    for name, expected in checkpoint.sha256.items():
        verify(folder / name, expected)
    if not is_hugging_face(folder):
        missing = [name for name in _CTRANSLATE2_FILES if not (folder / name).exists()]
        if not any((folder / name).exists() for name in _VOCABULARIES):
            missing.append(_VOCABULARIES[0])
        if missing:
            raise ModelError(
                f"{folder} holds no Whisper checkpoint: {', '.join(missing)} missing. It should be "
                "a CTranslate2 folder, or one of Hugging Face with .safetensors files."
            )
    return folder


def _from_hub(checkpoint: Checkpoint) -> Path:
    from huggingface_hub import (
        snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    )
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert checkpoint.hub
    by_hand = "or fetch it elsewhere and give its folder by --checkpoint"
    try:
        return Path(
            snapshot_download(
                checkpoint.hub,
                revision=checkpoint.revision,
                allow_patterns=list(checkpoint.sha256) or None,
            )
        )
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{checkpoint.source} is not on this machine, and the hub cannot be reached or is "
            f"switched off (HF_HUB_OFFLINE). Connect, {by_hand}. ({_first_line(error)})"
        ) from None
    # Each version of the hub's library has another HTTP library below, with errors of its own.
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelError(f"{checkpoint.source}: {reason}. Try again, {by_hand}.") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else repr(error)


def verify(path: Path, expected: str) -> None:
    """Raises ModelError unless the file is there with this SHA-256."""
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    path = path.resolve()  # what has to be deleted: the hub's cache links to it
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ModelError(
            f"{path} is not the file that was pinned: its SHA-256 is {actual}, not {expected}. "
            "Delete it and try again; if it comes back, do not use it."
        )


def fetch_silero(out: Path, local: Path | None = None) -> None:
    """Write the VAD's ONNX file to `out`: `local`, or out of its wheel from the package index.

    Raises ModelError.
    """
    file = silero()
    if local is not None:
        verify(local, file.sha256)
        out.write_bytes(local.read_bytes())
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary", ":all:", "--dest", folder, file.requirement),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ModelError(
                f"{file.requirement} cannot be had from the package index: {reason}. "
                f"Fetch the wheel elsewhere, and give {file.member} of it by --silero."
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                wheel.extract(file.member, folder)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"{wheels[0].name} is not the wheel it should be: {error}") from None
        verify(Path(folder) / file.member, file.sha256)
        out.write_bytes((Path(folder) / file.member).read_bytes())
