"""
The tensors in CTranslate2's model.bin, as float32 and by the names that Hugging Face gives them.

    version, name of the model, revision, number of variables,
    of each: name, rank, dimensions, type, size in bytes, values
    number of aliases, of each: name, the variable meant

All little endian; a string is its length with a zero byte, its bytes and the zero (the writer:
ctranslate2/specs/model_spec.py). CTranslate2 itself reads such a file, but does not hand it out.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[np.float32]]

_VERSION = 6
_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
TABLE = "model.decoder.embed_tokens.weight"
HEADS = {side: f"model.{side}.heads" for side in ("encoder", "decoder")}
_SCALE = "_scale"
# Parts of a name there and here, in a layer and out of it.
_PARTS = {
    "gamma": "weight",
    "beta": "bias",
    "num_heads": "heads",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "encodings": "weight",
}
# Products of one input that are one matrix there.
_FUSED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
# Zeros there: keys have none.
_NO_BIAS = "k_proj.bias"


def read(path: Path) -> Tensors:
    """Raises ValueError if it is no Whisper model of a version that is known."""
    try:
        with path.open("rb") as file:
            variables = _variables(file)
    except (struct.error, KeyError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    found: dict[str, npt.NDArray[np.float32]] = {}
    for name, values in variables.items():
        if name.endswith(_SCALE) or not name.startswith(("encoder/", "decoder/")):
            continue
        scale = variables.get(name + _SCALE)
        whole = values.astype(np.float32)
        if scale is not None and scale.ndim:  # of each output
            whole /= scale.reshape(-1, *[1] * (whole.ndim - 1))
        elif scale is not None:
            whole /= scale
        found |= _named(name, whole)
    return found


def write_changed(path: Path, out: Path, changed: Tensors) -> None:
    """The model `path` with other values for the tensors `changed`, each kept in its own type.

    Raises ValueError if one of them is not in the model as a tensor of its own and of that shape.
    """
    whole = bytearray(path.read_bytes())
    missing = set(changed)
    with path.open("rb") as file:
        for name, values, at in _stored(file):
            if not name.startswith(("encoder/", "decoder/")) or values.dtype.kind != "f":
                continue
            found = list(_named(name, values))
            if len(found) == 1 and found[0] in missing:
                new = changed[found[0]]
                if new.shape != values.shape:
                    raise ValueError(f"{found[0]} is {values.shape} in {path}, not {new.shape}")
                whole[at : at + values.nbytes] = new.astype(values.dtype).tobytes()
                missing.remove(found[0])
    if missing:
        raise ValueError(f"{path} holds no tensor {min(missing)}")
    out.write_bytes(whole)


def _variables(file: BinaryIO) -> dict[str, npt.NDArray[Any]]:
    variables = {name: values for name, values, _ in _stored(file)}
    for _ in range(_number(file, "<I")):  # equal tensors are stored once
        alias, meant = _string(file), _string(file)
        variables[alias] = variables[meant]
        if meant + _SCALE in variables:
            variables[alias + _SCALE] = variables[meant + _SCALE]
    return variables


def _number(file: BinaryIO, form: str) -> int:
    (value,) = struct.unpack(form, file.read(struct.calcsize(form)))
    return value


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "<H"))[:-1].decode()


def _stored(file: BinaryIO) -> Iterator[tuple[str, npt.NDArray[Any], int]]:
    """The name and values of each variable, and where in the file its values begin."""
    version, model, _ = _number(file, "<I"), _string(file), _number(file, "<I")
    if (version, model) != (_VERSION, "WhisperSpec"):
        raise KeyError(f"version {version} of {model!r}")
    for _ in range(_number(file, "<I")):
        name = _string(file)
        shape = [_number(file, "<I") for _ in range(_number(file, "<B"))]
        kind, size = np.dtype(_TYPES[_number(file, "<B")]), _number(file, "<I")
        at = file.tell()
        data = file.read(size)
        if len(data) < size:
            raise struct.error("it ends too soon")
        yield name, np.frombuffer(data, kind).reshape(shape), at


def _named(name: str, values: npt.NDArray[np.float32]) -> Tensors:
    side, _, rest = name.partition("/")
    prefix = f"model.{side}"
    if rest.startswith("layer_") and "/" in rest and rest[6].isdigit():
        layer, _, rest = rest.partition("/")
        prefix += f".layers.{layer.removeprefix('layer_')}"
    part, _, kind = rest.rpartition("/")
    if part in _FUSED:
        parts = np.split(values, len(_FUSED[part]))
        found = {f"{prefix}.{one}.{kind}": p for one, p in zip(_FUSED[part], parts, strict=True)}
        return {name: p for name, p in found.items() if not name.endswith(_NO_BIAS)}
    names = [_PARTS.get(part, part), _PARTS.get(kind, kind)]
    return {".".join([prefix, *filter(None, names)]): values}
