"""
A Whisper checkpoint as Hugging Face writes it, with the demo checkpoint's tokens and random
weights: small, whole, and it says nothing sensible without end.
"""

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Tensors = dict[str, npt.NDArray[Any]]

_DEMO = Path(__file__).parents[2] / "demo" / "checkpoint"
TOKENS, TEXT_TOKENS = 51_865, 50_257
WIDTH, HEADS, MELS, POSITIONS = 64, 2, 80, 448
TABLE = "model.decoder.embed_tokens.weight"


def tensors(mels: int = MELS, layers: int = 1) -> Tensors:
    return dict(_tensors(mels, layers))


@functools.cache
def _tensors(mels: int, layers: int) -> Tensors:
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 0.1) -> npt.NDArray[np.float32]:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    made: Tensors = {}

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        made[f"{name}.weight"] = normal(outputs, inputs, scale=0.15)
        if bias:
            made[f"{name}.bias"] = normal(outputs)

    def norm(name: str) -> None:
        made[f"{name}.weight"] = 1 + normal(WIDTH)
        made[f"{name}.bias"] = normal(WIDTH)

    def attention(name: str) -> None:
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{name}.{part}", WIDTH, WIDTH, bias=part != "k_proj")

    made["model.encoder.conv1.weight"] = normal(WIDTH, mels, 3)
    made["model.encoder.conv1.bias"] = normal(WIDTH)
    made["model.encoder.conv2.weight"] = normal(WIDTH, WIDTH, 3)
    made["model.encoder.conv2.bias"] = normal(WIDTH)
    made["model.encoder.embed_positions.weight"] = normal(1500, WIDTH)
    made["model.decoder.embed_positions.weight"] = normal(POSITIONS, WIDTH)
    made[TABLE] = normal(TOKENS, WIDTH, scale=0.3)
    for side in ("encoder", "decoder"):
        norm(f"model.{side}.layer_norm")
        for layer in range(layers):
            at = f"model.{side}.layers.{layer}"
            attention(f"{at}.self_attn")
            norm(f"{at}.self_attn_layer_norm")
            if side == "decoder":
                attention(f"{at}.encoder_attn")
                norm(f"{at}.encoder_attn_layer_norm")
            linear(f"{at}.fc1", 4 * WIDTH, WIDTH)
            linear(f"{at}.fc2", WIDTH, 4 * WIDTH)
            norm(f"{at}.final_layer_norm")
    return made


def compact(full: Tensors, ids: npt.NDArray[np.int32]) -> Tensors:
    """The same as the demo checkpoint is stored: of the text tokens only the rows of `ids`; all
    others share the row of the first that is not among them."""
    table = full[TABLE]
    shared = next(row for row in range(TEXT_TOKENS) if row not in ids)
    return full | {
        TABLE: np.concatenate([table[ids], table[TEXT_TOKENS:]]),
        "token_ids": ids,
        "shared_row": table[shared : shared + 1],
        "text_tokens": np.array([TEXT_TOKENS], np.int32),
    }


def write(
    folder: Path,
    tensors: Tensors,
    config: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """The checkpoint's folder. A value None in `config` or `generation` removes the key."""
    folder.mkdir(parents=True)
    layers = sum(name.endswith("fc1.weight") for name in tensors) // 2
    ours = {
        "d_model": WIDTH,
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 4 * WIDTH,
        "decoder_ffn_dim": 4 * WIDTH,
    }
    quiet = {"suppress_tokens": None, "begin_suppress_tokens": None, "alignment_heads": None}
    for name, changes in (
        ("config.json", ours | dict(config or {})),
        ("generation_config.json", quiet | dict(generation or {})),
    ):
        values = json.loads((_DEMO / name).read_text("utf-8")) | changes
        values = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(values), "utf-8")
    shutil.copy(_DEMO / "tokenizer.json", folder)
    names = sorted(tensors)
    for shard in range(shards):
        part = {name: np.ascontiguousarray(tensors[name]) for name in names[shard::shards]}
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}.safetensors"
        save_file(part, folder / file)
    return folder
