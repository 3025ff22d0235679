"""
The manifest of models (models.toml): what there is, where each file comes from and what it must
be. sources.py fetches it.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field, TypeAdapter

from dalston.triton.contract import MARGIN, VARIANTS, WINDOWS

_HERE = Path(__file__).resolve().parent
MANIFEST = _HERE / "models.toml"
# Beside the package: a link in a checkout, package data in a wheel.
BUNDLED = Path(__file__).parent.parent / "demo"

# Where a checkpoint of the hub is looked for: "auto" is everywhere, in this order.
Source = Literal["auto", "cache", "hub", "mirror"]
SOURCES: tuple[Source, ...] = get_args(Source)
# Layer norms that checkpoints are served with (triton/adaptation), and what a folder of one's own
# calls its own.
DELTAS = _HERE / "adaptation" / "deltas"
ADAPTATION = "adaptation.safetensors"
# What a folder that is in no manifest may say of itself.
BESIDE = "dalston.json"
_PROVEN = ("windows", "shortest_window", "margin", "proven", "languages")


class ModelError(Exception):
    """A model that cannot be had, and what to do about it."""


@dataclass(frozen=True)
class Mirror:
    """The files of a checkpoint in wheels of the Python package index. Whoever put them there is
    not trusted: the hashes of the checkpoint say whether they are the files."""

    requirements: tuple[str, ...]  # name==version
    files: Mapping[str, tuple[str, ...]]  # file -> the members it consists of, in their order


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and where they come from: one of `bundled`, `folder` and `hub`."""

    id: str
    windows: Literal["right-sized", "full"] = "full"
    # Seconds, of right-sized ones, and of the silence behind the audio.
    shortest_window: Annotated[int, Field(ge=WINDOWS[0], le=WINDOWS[-1])] = WINDOWS[0]
    margin: Annotated[float, Field(ge=MARGIN, le=WINDOWS[-1])] = MARGIN
    proven: str = ""  # the command that showed right-sized windows to be as good as full ones
    # Adapts it to right-sized windows; full ones keep the untouched weights. A file of DELTAS, or
    # ADAPTATION in the checkpoint's own folder.
    delta: str | None = None
    delta_sha256: str | None = None
    languages: tuple[str, ...] = ()  # empty: all that the vocabulary names
    translates: bool = True  # into English, if it knows more than that
    bundled: str | None = None  # a folder beside this package
    folder: Path | None = None
    hub: str | None = None  # owner/name
    revision: str | None = None
    mirror: Mirror | None = None
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])  # by file
    megabytes: int | None = None  # to download

    @property
    def source(self) -> str:
        """The first place it comes from."""
        if self.hub:
            return f"{self.hub}@{(self.revision or '')[:8]}"
        return str(self.folder) if self.folder else "comes with dalston"


def delta_of(checkpoint: Checkpoint) -> Path | None:
    """Its delta. Raises ModelError if it is not the one that was pinned."""
    if checkpoint.delta is None:
        return None
    path = (checkpoint.folder or DELTAS) / checkpoint.delta
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    if expected := checkpoint.delta_sha256:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != expected:
            raise ModelError(f"{path} is not the file that was pinned: its SHA-256 is {actual}")
    return path


@dataclass(frozen=True)
class Served:
    """A variant of a profile: a checkpoint and how it is run."""

    checkpoint: Checkpoint
    compute_type: str
    beam_size: int
    device: Literal["cpu", "gpu"]
    instances: int | Literal["cores"]


@dataclass(frozen=True)
class WheelFile:
    """A file of a wheel of the package index. The wheel is opened, never installed."""

    requirement: str
    member: str
    sha256: str


def silero(manifest: Path = MANIFEST) -> WheelFile:
    return TypeAdapter(WheelFile).validate_python(_read(manifest)["silero"])


def end_of_turn(manifest: Path = MANIFEST) -> WheelFile:
    return TypeAdapter(WheelFile).validate_python(_read(manifest)["end_of_turn"])


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
    """That of a folder, with what its dalston.json says, if there is one. Raises ModelError."""
    path = folder / BESIDE
    try:
        says: Any = json.loads(path.read_text("utf-8") if path.exists() else "{}")
        if not isinstance(says, dict):
            raise ValueError("no JSON object")
        fields = cast(dict[str, Any], says)
        if unknown := set(fields) - set(_PROVEN):
            raise ValueError(f"it knows nothing of {', '.join(sorted(unknown))}")
        if (folder / ADAPTATION).exists():  # it was written because it proved itself
            fields = {"windows": "right-sized", "delta": ADAPTATION, **fields}
        return TypeAdapter(Checkpoint).validate_python(
            {"id": folder.resolve().name, "folder": folder, **fields}
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from None
