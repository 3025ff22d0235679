"""
A Whisper checkpoint as Hugging Face writes it -> a CTranslate2 folder. Needs no torch.

CTranslate2's own converter loads the model class of transformers only to copy its arrays; here
they are copied from the safetensors file itself. The result is the same, byte for byte in
model.bin, without 2 GB of dependencies.

The bundled demo checkpoint is such a folder with one liberty: its token table holds only the rows
that were trained (`token_ids` names them); all other text tokens share `shared_row`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from ctranslate2.converters.utils import fuse_linear
from ctranslate2.specs import common_spec, whisper_spec
from safetensors import SafetensorError, safe_open

from dalston.triton.models import ADAPTATION

Array = npt.NDArray[Any]

_EMBEDDING = "model.decoder.embed_tokens.weight"
# What weights are kept in where they are changed after the conversion.
STORED = "float16"
_FILES = ("config.json", "generation_config.json", "tokenizer.json")
_DIMENSIONS = (
    "encoder_layers",
    "encoder_attention_heads",
    "decoder_layers",
    "decoder_attention_heads",
)


class CheckpointError(Exception):
    """A folder that is no Whisper checkpoint, or a broken one; says what is wrong with it."""


def is_hugging_face(folder: Path) -> bool:
    return (folder / "config.json").exists() and bool(_weights(folder))


def _weights(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights; a delta for short windows may lie beside any weights."""
    return [path for path in sorted(folder.glob("*.safetensors")) if path.name != ADAPTATION]


def convert(folder: Path, out: Path, quantization: str) -> None:
    """Write the CTranslate2 form of `folder` to `out`, which must not exist.

    quantization: int8, float16, float32, ... as CTranslate2 names them. Raises CheckpointError.
    """
    config, generation, tokenizer = (_json(folder / name) for name in _FILES)
    if config.get("model_type") != "whisper":
        raise CheckpointError(f"{folder}: a {config.get('model_type')!r} model, not whisper")
    if missing := [key for key in (*_DIMENSIONS, "vocab_size") if key not in config]:
        raise CheckpointError(f"{folder}: config.json says nothing about {', '.join(missing)}")
    spec = whisper_spec.WhisperSpec(*(config[key] for key in _DIMENSIONS))
    try:
        _fill(spec, tensors(folder))
    except KeyError as name:
        raise CheckpointError(f"{folder}: the tensor {name} is missing") from None
    except (IndexError, ValueError) as error:
        raise CheckpointError(f"{folder}: the tensors do not fit each other: {error}") from None
    spec.register_vocabulary(_vocabulary(tokenizer, config["vocab_size"], folder))
    spec.config.suppress_ids = generation.get("suppress_tokens") or []
    spec.config.suppress_ids_begin = generation.get("begin_suppress_tokens") or []
    spec.config.lang_ids = sorted(generation.get("lang_to_id", {}).values())
    layers, heads = config["decoder_layers"], config["decoder_attention_heads"]
    # Without known alignment heads all of the later half are used: it works, less precisely.
    spec.config.alignment_heads = generation.get("alignment_heads") or [
        [layer, head] for layer in range(layers // 2, layers) for head in range(heads)
    ]
    spec.validate()
    spec.optimize(quantization=quantization)
    out.mkdir(parents=True)
    spec.save(str(out))


def tensors(folder: Path) -> dict[str, Array]:
    """All of them, the demo checkpoint's in the usual form. Raises CheckpointError."""
    return _expanded(_tensors(folder))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: {path.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: no JSON object")
    return cast(dict[str, Any], value)


def _tensors(folder: Path) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for path in _weights(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    tensors[name] = _tensor(file, path, name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: {error}") from None
    if not tensors:
        raise CheckpointError(f"{folder}: no .safetensors file")
    return tensors


def _tensor(file: Any, path: Path, name: str) -> Array:
    match file.get_slice(name).get_dtype():
        case "F32" | "F16" | "I32":
            return file.get_tensor(name)
        case "BF16":
            return _bfloat16(path, name)
        case other:
            raise CheckpointError(f"{path}: {name} is {other}, not F32, F16 or BF16")


def _bfloat16(path: Path, name: str) -> Array:
    """A tensor in a type that numpy does not have, as float32: the same with 16 bits of zero."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(size))[name]
        begin, end = about["data_offsets"]
        file.seek(8 + size + begin)
        bits = np.frombuffer(file.read(end - begin), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(about["shape"])


def _expanded(tensors: dict[str, Array]) -> dict[str, Array]:
    """The demo checkpoint's rows in their places of the full table."""
    if "token_ids" not in tensors:
        return tensors
    ids, rows = tensors.pop("token_ids"), tensors[_EMBEDDING]
    # Text tokens come first; behind them controls and times are all there.
    tail = rows[len(ids) :]
    text = np.repeat(tensors.pop("shared_row"), int(tensors.pop("text_tokens")[0]), 0)
    text[ids] = rows[: len(ids)]
    return tensors | {_EMBEDDING: np.concatenate([text, tail])}


def _vocabulary(tokenizer: dict[str, Any], size: int, folder: Path) -> list[str]:
    """All tokens in the order of their ids."""
    try:
        ids: dict[str, int] = dict(tokenizer["model"]["vocab"])
        ids |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    except (KeyError, TypeError):
        raise CheckpointError(f"{folder}: tokenizer.json is not of the BPE kind") from None
    tokens = [""] * size
    for token, id in ids.items():
        if id < size:
            tokens[id] = token
    # Older tokenizers leave the time tokens out.
    first_time = max(ids.values()) + 1
    for id in range(first_time, size):
        tokens[id] = f"<|{(id - first_time) * 0.02:.2f}|>"
    return tokens


def _fill(spec: Any, tensors: Mapping[str, Array]) -> None:
    def part(prefix: str, target: Any) -> None:
        target.weight = tensors[f"{prefix}.weight"]
        if not prefix.endswith(".k_proj"):  # the only one without
            target.bias = tensors[f"{prefix}.bias"]

    def norm(prefix: str, target: Any) -> None:
        target.gamma, target.beta = tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"]

    def attention(prefix: str, target: Any, fused: list[list[str]]) -> None:
        for place, names in enumerate(fused):
            linears = list[Any]()
            for name in names:
                linears.append(common_spec.LinearSpec())
                part(f"{prefix}.{name}", linears[-1])
            fuse_linear(target.linear[place], linears)
        part(f"{prefix}.out_proj", target.linear[-1])

    for side in ("encoder", "decoder"):
        target, prefix = getattr(spec, side), f"model.{side}"
        target.position_encodings.encodings = tensors[f"{prefix}.embed_positions.weight"]
        norm(f"{prefix}.layer_norm", target.layer_norm)
        for number, layer in enumerate(target.layer):
            at = f"{prefix}.layers.{number}"
            attention(f"{at}.self_attn", layer.self_attention, [["q_proj", "k_proj", "v_proj"]])
            norm(f"{at}.self_attn_layer_norm", layer.self_attention.layer_norm)
            if side == "decoder":
                across = [["q_proj"], ["k_proj", "v_proj"]]
                attention(f"{at}.encoder_attn", layer.attention, across)
                norm(f"{at}.encoder_attn_layer_norm", layer.attention.layer_norm)
            part(f"{at}.fc1", layer.ffn.linear_0)
            part(f"{at}.fc2", layer.ffn.linear_1)
            norm(f"{at}.final_layer_norm", layer.ffn.layer_norm)
    part("model.encoder.conv1", spec.encoder.conv1)
    part("model.encoder.conv2", spec.encoder.conv2)
    spec.decoder.embeddings.weight = tensors[_EMBEDDING]
    spec.decoder.projection.weight = tensors[_EMBEDDING]  # tied
