"""
A converted checkpoint computes what its tensors say: compared with Whisper written in numpy.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
import pytest
import random_whisper
from random_whisper import TABLE, TEXT_TOKENS, TOKENS, Tensors
from recordings import spoken

from dalston.triton.conversion import CheckpointError, convert, is_hugging_face
from dalston.triton.features import log_mel
from dalston.triton.models import ADAPTATION
from dalston.triton.vocabulary import Vocabulary
from dalston.triton.whisper import Row, Transcript, Whisper

Array = npt.NDArray[Any]

PROMPT = [50258, 50261, 50359, 50363]  # start, German, transcribe, no times


# --- Whisper, as the paper of Radford et al. 2022 and transformers' modeling_whisper.py have it ---


def norm(tensors: Tensors, name: str, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(tensors: Tensors, name: str, x: Array) -> Array:
    return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def convolution(tensors: Tensors, name: str, x: Array, stride: int) -> Array:
    """Three wide, padded by one."""
    padded = np.pad(x, ((0, 0), (1, 1)))
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    steps = range(0, x.shape[1], stride)
    return np.stack([np.tensordot(weight, padded[:, t : t + 3], 2) + bias for t in steps], axis=1)


def attention(tensors: Tensors, name: str, x: Array, memory: Array, causal: bool) -> Array:
    heads, width = random_whisper.HEADS, x.shape[1] // random_whisper.HEADS

    def split(part: str, values: Array) -> Array:
        projected = linear(tensors, f"{name}.{part}", values)
        return projected.reshape(len(values), heads, width).transpose(1, 0, 2)

    scores = split("q_proj", x) @ split("k_proj", memory).transpose(0, 2, 1) / math.sqrt(width)
    if causal:
        scores = np.where(np.tri(len(x), len(memory), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = (weights @ split("v_proj", memory)).transpose(1, 0, 2).reshape(x.shape)
    return linear(tensors, f"{name}.out_proj", mixed)


def feed_forward(tensors: Tensors, at: str, x: Array) -> Array:
    hidden = linear(tensors, f"{at}.fc1", norm(tensors, f"{at}.final_layer_norm", x))
    return linear(tensors, f"{at}.fc2", gelu(hidden))


def encode(tensors: Tensors, features: Array, layers: int) -> Array:
    x = gelu(convolution(tensors, "model.encoder.conv1", features, 1))
    x = gelu(convolution(tensors, "model.encoder.conv2", x, 2)).T
    x = x + tensors["model.encoder.embed_positions.weight"][: len(x)]
    for layer in range(layers):
        at = f"model.encoder.layers.{layer}"
        y = norm(tensors, f"{at}.self_attn_layer_norm", x)
        x = x + attention(tensors, f"{at}.self_attn", y, y, causal=False)
        x = x + feed_forward(tensors, at, x)
    return norm(tensors, "model.encoder.layer_norm", x)


def logits(tensors: Tensors, memory: Array, tokens: list[int], layers: int) -> Array:
    """Of the token behind each of these."""
    x = tensors[TABLE][tokens] + tensors["model.decoder.embed_positions.weight"][: len(tokens)]
    for layer in range(layers):
        at = f"model.decoder.layers.{layer}"
        y = norm(tensors, f"{at}.self_attn_layer_norm", x)
        x = x + attention(tensors, f"{at}.self_attn", y, y, causal=True)
        y = norm(tensors, f"{at}.encoder_attn_layer_norm", x)
        x = x + attention(tensors, f"{at}.encoder_attn", y, memory, causal=False)
        x = x + feed_forward(tensors, at, x)
    return norm(tensors, "model.decoder.layer_norm", x) @ tensors[TABLE].T


# --- what comes out -------------------------------------------------------------------------------


def loaded(folder: Path) -> Any:
    return ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32")


def converted(tmp_path: Path, tensors: Tensors, **options: Any) -> Path:
    """The CTranslate2 folder of a checkpoint with these tensors."""
    source = random_whisper.write(tmp_path / "hugging-face", tensors, **options)
    convert(source, tmp_path / "converted", "float32")
    return tmp_path / "converted"


def generated(model: Any, encoded: Any, count: int) -> tuple[list[int], Array]:
    """The first tokens behind PROMPT, and the logits that each was chosen by."""
    options = {"beam_size": 1, "suppress_blank": False, "return_logits_vocab": True}
    (result,) = model.generate(encoded, [PROMPT], max_length=2 * count, **options)
    return result.sequences_ids[0], np.stack(result.logits[0])


def some_features(mels: int, frames: int = 60) -> npt.NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((mels, frames)).astype(np.float32)


@pytest.mark.parametrize(("mels", "layers"), [(80, 1), (128, 2)])
def test_encoder_and_decoder_compute_what_the_tensors_say(tmp_path: Path, mels: int, layers: int):
    tensors = random_whisper.tensors(mels, layers)
    model = loaded(converted(tmp_path, tensors))
    assert (model.n_mels, model.is_multilingual, model.num_languages) == (mels, True, 99)

    features = some_features(mels)
    encoded = model.encode(ctranslate2.StorageView.from_array(features[None]))
    memory = encode(tensors, features, layers)
    np.testing.assert_allclose(np.asarray(encoded)[0], memory, atol=1e-4)

    (result,) = model.generate(
        encoded,
        [PROMPT],
        beam_size=1,
        max_length=16,
        suppress_blank=False,
        return_logits_vocab=True,
    )
    tokens: list[int] = result.sequences_ids[0]
    expected = logits(tensors, memory, [*PROMPT, *tokens], layers)[len(PROMPT) - 1 : -1]
    assert len(tokens) == 8
    np.testing.assert_allclose(np.stack(result.logits[0]), expected, atol=1e-3)


def test_the_rows_of_the_demo_format_stand_at_their_ids_and_all_others_are_the_shared_one(
    tmp_path: Path,
):
    full = random_whisper.tensors()
    ids = np.sort(np.random.default_rng(1).choice(TEXT_TOKENS, 300, replace=False)).astype(np.int32)
    stored = random_whisper.compact(full, ids)
    assert stored[TABLE].shape[0] == 300 + TOKENS - TEXT_TOKENS

    # The logits are the table's rows times a vector, so they read it back.
    model = loaded(converted(tmp_path, stored))
    features = some_features(80)
    encoded = model.encode(ctranslate2.StorageView.from_array(features[None]))
    found = generated(model, encoded, 3)[1][0]
    memory = encode(full, features, 1)
    expected = logits(full, memory, PROMPT, 1)[-1]
    trained = [*ids.tolist(), *range(TEXT_TOKENS, TOKENS)]
    np.testing.assert_allclose(found[trained], expected[trained], atol=1e-3)
    others = np.setdiff1d(np.arange(TEXT_TOKENS), ids)
    np.testing.assert_allclose(found[others], expected[others[0]], atol=1e-3)


def test_the_demo_format_gives_the_bytes_that_the_full_table_gives(tmp_path: Path):
    full = random_whisper.tensors()
    ids = np.array([3, 264, 50256], np.int32)
    rows = full[TABLE].copy()
    table = np.repeat(rows[:1], TEXT_TOKENS, 0)  # 0 is the first that is not among them
    table[ids] = rows[ids]
    spelled_out = full | {TABLE: np.concatenate([table, rows[TEXT_TOKENS:]])}
    stored = converted(tmp_path / "stored", random_whisper.compact(full, ids))
    whole = converted(tmp_path / "whole", spelled_out)
    assert (stored / "model.bin").read_bytes() == (whole / "model.bin").read_bytes()


def test_several_safetensors_files_are_one_checkpoint(tmp_path: Path):
    tensors = random_whisper.tensors()
    one = converted(tmp_path / "one", tensors)
    three = converted(tmp_path / "three", tensors, shards=3)
    assert (one / "model.bin").read_bytes() == (three / "model.bin").read_bytes()


def test_bfloat16_is_read_although_numpy_does_not_have_it(tmp_path: Path):
    # A bfloat16 is the upper half of a float32.
    rounded = {
        name: ((values.view(np.uint32) >> 16) << 16).view(np.float32)
        for name, values in random_whisper.tensors().items()
    }
    source = random_whisper.write(tmp_path / "source", rounded)
    halved = (source / "model.safetensors").read_bytes()
    size = int.from_bytes(halved[:8], "little")
    header, at, data = json.loads(halved[8 : 8 + size]), 0, list[bytes]()
    header = {name: about for name, about in header.items() if name in rounded}
    for name, about in header.items():
        half = (rounded[name].view(np.uint32) >> 16).astype("<u2").tobytes()
        about |= {"dtype": "BF16", "data_offsets": [at, at + len(half)]}
        at += len(half)
        data.append(half)
    text = json.dumps(header).encode()
    (source / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(data)
    )
    convert(source, tmp_path / "halves", "float32")
    whole = converted(tmp_path / "whole", rounded)
    assert (tmp_path / "halves" / "model.bin").read_bytes() == (whole / "model.bin").read_bytes()


def test_the_vocabulary_is_in_the_order_of_ids_and_times_that_are_left_out_are_added(
    tmp_path: Path,
):
    source = random_whisper.write(tmp_path / "source", random_whisper.tensors())
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    named = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    kept = [token for token in tokenizer["added_tokens"] if token["id"] <= 50_363]
    assert len(kept) < len(tokenizer["added_tokens"])
    (source / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": kept}), "utf-8")
    convert(source, tmp_path / "out", "int8")
    tokens = json.loads((tmp_path / "out" / "vocabulary.json").read_text("utf-8"))
    assert len(tokens) == TOKENS
    assert (tokens[0], tokens[50_256], tokens[50_257]) == ("!", "", "<|endoftext|>")
    assert all(tokens[id] == token for token, id in named.items())
    assert (tokens[50_364], tokens[-1]) == ("<|0.00|>", "<|30.00|>")


def test_what_the_generation_config_says_comes_along(tmp_path: Path):
    said = {
        "suppress_tokens": [1, 2],
        "begin_suppress_tokens": [220, 50257],
        "alignment_heads": [[0, 1]],
    }
    out = converted(tmp_path, random_whisper.tensors(), generation=said)
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["suppress_ids"] == [1, 2]
    assert config["suppress_ids_begin"] == [220, 50257]
    assert config["alignment_heads"] == [[0, 1]]
    assert config["lang_ids"] == list(range(50_259, 50_358))


def test_without_known_alignment_heads_all_of_the_later_half_align(tmp_path: Path):
    out = converted(tmp_path, random_whisper.tensors(layers=3))
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["alignment_heads"] == [[1, 0], [1, 1], [2, 0], [2, 1]]


def test_the_demo_checkpoint_hears_words_in_speech(checkpoint: Path):
    whisper = Whisper(checkpoint)
    rows = [Row(audio) for audio in spoken()]
    results = whisper.transcribe(rows)
    texts = [result.text for result in results if isinstance(result, Transcript)]
    assert len(texts) == len(rows)
    assert sum(len(text.split()) >= 2 for text in texts) >= 0.9 * len(rows)


def test_the_demo_checkpoint_survives_eight_bits(
    hugging_face: Path, tmp_path: Path, checkpoint: Path
):
    convert(hugging_face, tmp_path / "float32", "float32")
    features = log_mel(spoken()[0], 400, 80)[None]
    exact, rounded = (
        np.asarray(loaded(folder).encode(ctranslate2.StorageView.from_array(features)))
        for folder in (tmp_path / "float32", checkpoint)
    )
    assert np.abs(rounded - exact).mean() < 0.1 * np.abs(exact).mean()
    assert (checkpoint / "model.bin").stat().st_size < (
        tmp_path / "float32/model.bin"
    ).stat().st_size


# --- what is refused ------------------------------------------------------------------------------


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, data: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return edit


def rewritten(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(change(values)), "utf-8")

    return edit


def without(name: str, key: str) -> Callable[[Path], None]:
    return rewritten(name, lambda values: {k: v for k, v in values.items() if k != key})


def strange_type(folder: Path) -> None:
    """A tensor of a type that would be read or not, depending on what else is imported."""
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\x38\x38"
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (removed("config.json"), "config.json is missing"),
        (removed("tokenizer.json"), "tokenizer.json is missing"),
        (removed("generation_config.json"), "generation_config.json is missing"),
        (written("config.json", b"{"), "config.json: Expecting property name"),
        (written("config.json", b"\xff"), "config.json: 'utf-8' codec"),
        (written("config.json", b"[]"), "config.json: no JSON object"),
        (rewritten("config.json", lambda c: c | {"model_type": "bert"}), "a 'bert' model"),
        (without("config.json", "encoder_layers"), "says nothing about encoder_layers"),
        (without("tokenizer.json", "model"), "tokenizer.json is not of the BPE kind"),
        (removed("model.safetensors"), "no .safetensors file"),
        (
            written("model.safetensors", b"not tensors at all"),
            "model.safetensors: ",
        ),
        (strange_type, "x is F8_E4M3, not F32, F16 or BF16"),
        (
            rewritten("config.json", lambda c: c | {"encoder_layers": 2}),
            "the tensor 'model.encoder.layers.1.self_attn.q_proj.weight' is missing",
        ),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused_with_what_is_wrong(
    random_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
):
    spoil(random_folder)
    with pytest.raises(CheckpointError, match=sentence):
        convert(random_folder, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def random_folder(tmp_path: Path) -> Path:
    return random_whisper.write(tmp_path / "checkpoint", random_whisper.tensors())


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        (TABLE, None, f"the tensor '{TABLE}' is missing"),
        ("model.encoder.conv2.bias", None, "the tensor 'model.encoder.conv2.bias' is missing"),
        (
            "model.encoder.layers.0.self_attn.q_proj.weight",
            np.zeros((3, 3), np.float32),
            "the tensors do not fit each other",
        ),
        ("token_ids", np.array([TEXT_TOKENS], np.int32), "the tensors do not fit each other"),
    ],
)
def test_tensors_that_are_missing_or_of_another_shape_are_named(
    tmp_path: Path, name: str, values: Array | None, sentence: str
):
    tensors = random_whisper.compact(random_whisper.tensors(), np.array([5], np.int32))
    del tensors[name]
    if values is not None:
        tensors[name] = values
    with pytest.raises(CheckpointError, match=sentence):
        converted(tmp_path, tensors)


def test_a_vocabulary_of_another_size_than_the_table_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="Vocabulary has size 60000"):
        converted(tmp_path, random_whisper.tensors(), config={"vocab_size": 60_000})


def test_only_a_folder_with_config_and_safetensors_is_one_of_hugging_face(
    hugging_face: Path, checkpoint: Path, tmp_path: Path
):
    assert is_hugging_face(hugging_face)
    assert not is_hugging_face(checkpoint)
    assert not is_hugging_face(tmp_path)
    assert Vocabulary.load(checkpoint)


def test_a_delta_beside_the_weights_is_none_of_them(tmp_path: Path, checkpoint: Path):
    folder = tmp_path / "adapted"
    shutil.copytree(checkpoint, folder)
    (folder / ADAPTATION).write_bytes(b"norms")
    assert not is_hugging_face(folder)
