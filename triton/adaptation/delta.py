"""
A delta: the layer norms of a checkpoint adapted to short windows, as a file of some 70 kB.

It holds whole values, float16, by the names of Hugging Face, and in its metadata the SHA-256 of the
model.bin it belongs to: on any other it is refused. Applied, it gives a checkpoint like any other.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dalston.triton import weights

_BASE = "checkpoint_sha256"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, norms: weights.Tensors, checkpoint: Path, about: Mapping[str, str]) -> None:
    """about: what else the file says of itself, such as how it was made and its licence."""
    values = {name: value.astype(np.float16) for name, value in norms.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(values, path, {**about, _BASE: sha256(checkpoint / "model.bin")})
    path.chmod(0o644)  # whoever serves it may be another user


def apply(path: Path, checkpoint: Path, out: Path) -> None:
    """The CTranslate2 folder `checkpoint` with the delta `path` in it -> the new folder `out`.

    Raises ValueError if the delta belongs to another checkpoint, or is none.
    """
    model = checkpoint / "model.bin"
    try:
        with safe_open(path, "numpy") as file:
            about: dict[str, str] = file.metadata() or {}
            norms = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no delta: {error}") from None
    if about.get(_BASE) != sha256(model):
        raise ValueError(f"the delta {path} belongs to another checkpoint than {checkpoint}")
    out.mkdir(parents=True)
    for other in checkpoint.iterdir():
        if other.is_file() and other.name != model.name:
            shutil.copy(other, out / other.name)
    weights.write_changed(model, out / model.name, norms)
