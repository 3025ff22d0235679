"""
A Whisper checkpoint as Hugging Face writes it, with the demo checkpoint's tokens and random
weights: whole, of any size, and it says nothing sensible without end. Or, with the dimensions of
Whisper tiny, always the same sentence: what it costs is what such a model costs.
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

_DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
TOKENS, TEXT_TOKENS = 51_865, 50_257
WIDTH, HEADS, MELS, POSITIONS = 64, 2, 80, 448
TINY_WIDTH, TINY_HEADS, TINY_LAYERS = 384, 6, 4
_END, _PROMPT = 50_257, 4  # the end of text; tokens before the text
_SENTENCE = "the quick brown fox runs over the lazy dog and away from home right now".split()
TABLE = "model.decoder.embed_tokens.weight"


def tensors(mels: int = MELS, layers: int = 1, width: int = WIDTH) -> Tensors:
    return dict(_tensors(mels, layers, width))


@functools.cache
def _tensors(mels: int, layers: int, width: int) -> Tensors:
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 0.1) -> npt.NDArray[np.float32]:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    made: Tensors = {}

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        made[f"{name}.weight"] = normal(outputs, inputs, scale=0.15)
        if bias:
            made[f"{name}.bias"] = normal(outputs)

    def norm(name: str) -> None:
        made[f"{name}.weight"] = 1 + normal(width)
        made[f"{name}.bias"] = normal(width)

    def attention(name: str) -> None:
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{name}.{part}", width, width, bias=part != "k_proj")

    made["model.encoder.conv1.weight"] = normal(width, mels, 3)
    made["model.encoder.conv1.bias"] = normal(width)
    made["model.encoder.conv2.weight"] = normal(width, width, 3)
    made["model.encoder.conv2.bias"] = normal(width)
    made["model.encoder.embed_positions.weight"] = normal(1500, width)
    made["model.decoder.embed_positions.weight"] = normal(POSITIONS, width)
    made[TABLE] = normal(TOKENS, width, scale=0.3)
    for side in ("encoder", "decoder"):
        norm(f"model.{side}.layer_norm")
        for layer in range(layers):
            at = f"model.{side}.layers.{layer}"
            attention(f"{at}.self_attn")
            norm(f"{at}.self_attn_layer_norm")
            if side == "decoder":
                attention(f"{at}.encoder_attn")
                norm(f"{at}.encoder_attn_layer_norm")
            linear(f"{at}.fc1", 4 * width, width)
            linear(f"{at}.fc2", width, 4 * width)
            norm(f"{at}.final_layer_norm")
    return made


def write_tiny(folder: Path) -> Path:
    """The dimensions of Whisper tiny; every transcript is the same fifteen words.

    The decoder's layers add nothing to their input, and the position of a token says which comes
    next. So the encoder and every step cost what they cost in a real model, and all transcripts
    take as many steps.
    """
    made = tensors(layers=TINY_LAYERS, width=TINY_WIDTH)
    vocabulary = json.loads((_DEMO / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    sentence = [*(vocabulary[f"\u0120{word}"] for word in _SENTENCE), _END]
    table = made[TABLE] / np.linalg.norm(made[TABLE], axis=1, keepdims=True)
    positions = [sentence[(p - _PROMPT + 1) % len(sentence)] for p in range(POSITIONS)]
    made[TABLE] = table
    made["model.decoder.embed_positions.weight"] = 8 * table[positions]
    for name, values in made.items():
        if name.startswith("model.decoder.layer"):
            if "out_proj" in name or "fc2" in name:
                made[name] = np.zeros_like(values)
            elif "norm" in name:
                made[name] = np.full_like(values, name.endswith("weight"))
    heads = {f"{side}_attention_heads": TINY_HEADS for side in ("encoder", "decoder")}
    half = {name: values.astype(np.float16) for name, values in made.items()}
    return write(folder, half, config=heads)


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
    width = tensors["model.encoder.conv1.weight"].shape[0]
    ours = {
        "d_model": width,
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
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
