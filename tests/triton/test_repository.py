"""
What `dalston models build` makes of a source and weights, and what it leaves alone when it cannot.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import random_whisper
from google.protobuf import text_format
from recordings import spoken
from tritonclient.grpc import model_config_pb2

from dalston.triton import graphs, models, repository, sources
from dalston.triton.contract import VARIANTS, whisper_model
from dalston.triton.conversion import convert
from dalston.triton.models import Checkpoint, ModelError, Served, local_checkpoint
from dalston.triton.whisper import Row, Transcript, Whisper

DEMO = models.profiles()["demo"]


@pytest.fixture(scope="module")
def silero(model_repository: Path) -> Path:
    return model_repository / "silero_vad" / "1" / "silero.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "repository"


@pytest.fixture
def spoilt(tmp_path: Path, checkpoint: Path) -> Path:
    """A copy of the demo checkpoint that may be spoilt."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def served(folder: Path, **changes: Any) -> Served:
    return replace(DEMO["fast"], checkpoint=local_checkpoint(folder), instances=1, **changes)


def config_of(out: Path, variant: str) -> Any:
    text = (out / whisper_model(variant) / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def parameters(out: Path, variant: str) -> dict[str, str]:
    return {key: value.string_value for key, value in config_of(out, variant).parameters.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def text_of(checkpoint: Path) -> str:
    (result,) = Whisper(checkpoint).transcribe([Row(spoken()[0], language="en")])
    assert isinstance(result, Transcript)
    return result.text


# --- what is built --------------------------------------------------------------------------------


def test_the_demo_profile_becomes_a_repository_that_is_whole_in_itself(out: Path, silero: Path):
    told = list[str]()
    assert repository.build(DEMO, out, silero=silero, cores=3, tell=told.append)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
        "silero_vad",
        "whisper_accurate",
        "whisper_fast",
    ]
    assert all(not path.is_symlink() for path in out.rglob("*"))
    assert (out / "silero_vad" / "1" / "silero.onnx").read_bytes() == silero.read_bytes()
    for variant in VARIANTS:
        folder = out / whisper_model(variant) / "1"
        source = repository.SOURCE / whisper_model(variant) / "1" / "model.py"
        assert (folder / "model.py").read_text() == source.read_text()
        assert len(text_of(folder / "checkpoint").split()) >= 2
    assert "fast: demo (comes with dalston)" in told
    assert "accurate: converting to int8_float32" in told


def test_the_model_that_judges_turns_is_there_for_those_who_ask(
    out: Path, silero: Path, turns_repository: Path
):
    network = turns_repository / "end_of_turn" / "1" / "end_of_turn.onnx"
    fast = {"fast": DEMO["fast"]}
    repository.build(fast, out, silero=silero)
    assert not (out / "end_of_turn").exists()
    assert repository.build(fast, out, silero=silero, end_of_turn=network)
    assert (out / "end_of_turn" / "1" / "end_of_turn.onnx").read_bytes() == network.read_bytes()
    assert (out / "end_of_turn" / "config.pbtxt").exists()
    assert not repository.build(fast, out, silero=silero, end_of_turn=network)
    with pytest.raises(ModelError, match="is not the file that was pinned"):
        repository.build(fast, out, silero=silero, end_of_turn=silero)


def test_the_configuration_says_what_the_profile_says(out: Path, silero: Path):
    repository.build(DEMO, out, silero=silero, cores=3)
    demo = {"checkpoint_id": "demo", "languages": "en es de fr", "windows": "right-sized"}
    runs = demo | {"compute_type": "int8_float32", "shortest_window": "4", "margin": "0.25"}
    runs |= {"translates": "no"}
    assert parameters(out, "fast") == runs | {"beam_size": "1"}
    assert parameters(out, "accurate") == runs | {"beam_size": "5"}
    for variant, count in (("fast", 3), ("accurate", 1)):  # one for each core, and one
        (group,) = config_of(out, variant).instance_group
        assert (group.kind, group.count) == (group.KIND_CPU, count)
        batching = config_of(out, variant).dynamic_batching
        assert batching.max_queue_delay_microseconds == 0


# 001-07, K-08
def test_the_gpu_profile_runs_on_gpus(out: Path, silero: Path, checkpoint: Path):
    gpu = models.profiles()["gpu"]
    here = {
        variant: replace(model, checkpoint=local_checkpoint(checkpoint))
        for variant, model in gpu.items()
    }
    repository.build(here, out, silero=silero)
    for variant, beam in (("fast", "1"), ("accurate", "5")):
        (group,) = config_of(out, variant).instance_group
        assert (group.kind, group.count) == (group.KIND_GPU, 1)
        assert config_of(out, variant).dynamic_batching.max_queue_delay_microseconds > 0
        assert parameters(out, variant)["compute_type"] == "float16"
        assert parameters(out, variant)["beam_size"] == beam


def test_a_checkpoint_that_may_not_be_right_sized_says_so(out: Path, silero: Path):
    full = replace(DEMO["fast"], checkpoint=replace(DEMO["fast"].checkpoint, windows="full"))
    repository.build({"fast": full}, out, silero=silero)
    assert parameters(out, "fast")["windows"] == "full"


def test_a_folder_that_proves_nothing_gets_full_windows_and_one_that_does_its_own(
    out: Path, silero: Path, checkpoint: Path, tmp_path: Path
):
    repository.build({"fast": served(checkpoint)}, out, silero=silero)
    assert parameters(out, "fast")["windows"] == "full"
    proven = tmp_path / "proven"
    shutil.copytree(checkpoint, proven)
    says = {"windows": "right-sized", "shortest_window": 8, "margin": 2.0, "proven": "by a command"}
    (proven / "dalston.json").write_text(json.dumps(says))
    assert repository.build({"fast": served(proven)}, out, silero=silero)
    built = parameters(out, "fast")
    assert [built[key] for key in ("windows", "shortest_window", "margin")] == [
        "right-sized",
        "8",
        "2.0",
    ]


def test_a_local_ctranslate2_folder_is_served_as_it_is(out: Path, silero: Path, checkpoint: Path):
    repository.build({"fast": served(checkpoint)}, out, silero=silero)
    built = out / "whisper_fast" / "1" / "checkpoint"
    assert contents(built) == contents(checkpoint)
    assert parameters(out, "fast")["checkpoint_id"] == checkpoint.name
    # Unpinned, so its vocabulary says which languages it may know.
    languages = parameters(out, "fast")["languages"].split()
    assert len(languages) == 99
    assert languages[:2] == ["en", "zh"]


def test_weights_are_linked_where_that_is_possible(out: Path, silero: Path, checkpoint: Path):
    repository.build({"fast": served(checkpoint)}, out, silero=silero)
    built = out / "whisper_fast" / "1" / "checkpoint" / "model.bin"
    assert os.path.samefile(built, checkpoint / "model.bin")


def test_a_local_hugging_face_folder_is_converted_to_what_is_asked_for(
    out: Path, silero: Path, hugging_face: Path, tmp_path: Path
):
    local = served(hugging_face, compute_type="float32")
    repository.build({"accurate": local}, out, silero=silero)
    convert(hugging_face, tmp_path / "converted", "float32")
    built = out / "whisper_accurate" / "1" / "checkpoint"
    graphs.write(tmp_path / "converted", quantized=False)
    assert contents(built) == contents(tmp_path / "converted")
    assert parameters(out, "accurate")["compute_type"] == "float32"


def test_an_english_only_checkpoint_is_told_by_its_tokens(out: Path, silero: Path, tmp_path: Path):
    source = random_whisper.write(tmp_path / "english", random_whisper.tensors())
    tokenizer = (source / "tokenizer.json").read_text("utf-8")
    assert tokenizer.count('"": 50256') == 1
    english = tokenizer.replace('"": 50256', '"qqqqzzzz": 50256')
    (source / "tokenizer.json").write_text(english, "utf-8")
    repository.build({"fast": served(source, compute_type="float32")}, out, silero=silero)
    assert parameters(out, "fast")["languages"] == "en"
    built = out / "whisper_fast" / "1" / "checkpoint"
    assert not ctranslate2.models.Whisper(str(built)).is_multilingual
    whisper = Whisper(built)
    assert whisper.languages == ["en"]
    (result,) = whisper.transcribe([Row(np.zeros(16_000, np.int16))])
    assert isinstance(result, Transcript)
    assert (result.language, result.language_probability) == ("en", 1)


# --- when nothing is to be done -------------------------------------------------------------------


def test_a_second_build_that_would_change_nothing_does_nothing(out: Path, silero: Path):
    assert repository.build(DEMO, out, silero=silero, cores=2)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not repository.build(DEMO, out, silero=silero, cores=2)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_checkout_of_the_same_checkpoint_changes_nothing(
    out: Path, silero: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fast = {"fast": DEMO["fast"]}
    assert repository.build(fast, out, silero=silero, cores=2)
    elsewhere = tmp_path / "checkout"
    shutil.copytree(
        models.BUNDLED / "checkpoint", elsewhere / "checkpoint", copy_function=shutil.copy
    )
    monkeypatch.setattr(models, "BUNDLED", elsewhere)
    assert not repository.build(fast, out, silero=silero, cores=2)
    config = elsewhere / "checkpoint" / "generation_config.json"
    config.write_text(config.read_text() + " ")
    assert repository.build(fast, out, silero=silero, cores=2)


def test_pinned_files_that_come_from_another_source_change_nothing(
    out: Path,
    silero: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copytree(checkpoint, tmp_path / "mirrored", copy_function=shutil.copy)
    sha256 = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.iterdir()
    }
    pinned = Checkpoint("demo", hub="owner/name", sha256=sha256)
    fast = {"fast": replace(DEMO["fast"], checkpoint=pinned)}
    for folder, is_built in ((checkpoint, True), (tmp_path / "mirrored", False)):
        monkeypatch.setattr(sources, "fetch", lambda *_, folder=folder: folder)  # pyright: ignore[reportUnknownLambdaType]
        assert repository.build(fast, out, silero=silero, cores=2) == is_built


def test_what_the_result_depends_on_makes_it_build_anew(out: Path, silero: Path, spoilt: Path):
    fast = served(spoilt)
    assert repository.build({"fast": fast}, out, silero=silero, cores=2)
    assert not repository.build({"fast": fast}, out, silero=silero, cores=2)
    assert repository.build({"fast": fast}, out, silero=silero, cores=3)
    wider = replace(fast, beam_size=2)
    assert repository.build({"fast": wider}, out, silero=silero, cores=3)
    assert parameters(out, "fast")["beam_size"] == "2"
    weights = spoilt / "model.bin"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert repository.build({"fast": wider}, out, silero=silero, cores=3)
    (out / "built.json").write_text("{")
    assert repository.build({"fast": wider}, out, silero=silero, cores=3)
    assert not repository.build({"fast": wider}, out, silero=silero, cores=3)


def test_a_variant_that_is_served_no_more_is_gone(out: Path, silero: Path):
    repository.build(DEMO, out, silero=silero)
    repository.build({"fast": DEMO["fast"]}, out, silero=silero)
    assert not (out / "whisper_accurate").exists()


# --- when it cannot be built ----------------------------------------------------------------------


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return spoil


def overwrite(name: str, data: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (truncate("model.bin", 0.5), "mine is broken: Variable .* has an invalid payload size"),
        (truncate("model.bin", 0.9999), "mine is broken: "),
        (truncate("model.bin", 0), "mine is broken: File model.bin is incomplete"),
        (overwrite("model.bin", b"not weights at all"), "mine is broken: Unsupported model binary"),
        (overwrite("config.json", b"{"), "mine is broken: .*parse error"),
        (overwrite("vocabulary.json", b"{"), "mine cannot be served: Expecting property name"),
        (overwrite("vocabulary.json", b"[]"), "mine cannot be served: not a Whisper vocabulary"),
        (remove("model.bin"), "mine holds no Whisper checkpoint: model.bin missing"),
    ],
)
def test_a_broken_ctranslate2_folder_is_refused_with_what_is_wrong(
    out: Path, silero: Path, spoilt: Path, spoil: Callable[[Path], None], sentence: str
):
    spoil(spoilt)
    with pytest.raises(ModelError, match=sentence):
        repository.build({"fast": served(spoilt)}, out, silero=silero)
    assert not list(out.parent.glob("*"))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (truncate("model.safetensors", 0.5), "model.safetensors: Error while deserializing"),
        (truncate("tokenizer.json", 0.5), "tokenizer.json: "),
        (truncate("config.json", 0.5), "config.json: "),
    ],
)
def test_a_broken_hugging_face_folder_is_refused_with_what_is_wrong(
    out: Path, silero: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
):
    source = random_whisper.write(tmp_path / "mine", random_whisper.tensors())
    spoil(source)
    with pytest.raises(ModelError, match=f"mine cannot be served: .*{sentence}"):
        repository.build({"fast": served(source)}, out, silero=silero)


def test_weights_of_another_shape_that_load_but_do_not_run_are_refused(
    out: Path, silero: Path, tmp_path: Path
):
    tensors = random_whisper.tensors()
    tensors["model.encoder.conv1.weight"] = np.zeros((3, 3, 3), np.float32)
    source = random_whisper.write(tmp_path / "mine", tensors)
    with pytest.raises(ModelError, match="mine is broken: "):
        repository.build({"fast": served(source)}, out, silero=silero)


def test_a_folder_that_is_not_there_is_refused(out: Path, silero: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="nowhere is no folder"):
        repository.build({"fast": served(tmp_path / "nowhere")}, out, silero=silero)


def test_a_failed_build_leaves_the_old_repository_in_place(
    out: Path, silero: Path, spoilt: Path, tmp_path: Path
):
    repository.build(DEMO, out, silero=silero)
    before = contents(out)
    truncate("model.bin", 0.5)(spoilt)
    (tmp_path / "wrong.onnx").write_bytes(b"wrong")
    for broken, vad in (
        ({"fast": served(spoilt)}, silero),
        ({"fast": served(tmp_path / "nowhere")}, silero),
        (DEMO | {"fast": replace(DEMO["fast"], beam_size=9)}, tmp_path / "wrong.onnx"),
    ):
        with pytest.raises(ModelError):
            repository.build(broken, out, silero=vad)
        assert contents(out) == before
        assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_wrong_vad_is_refused_even_if_nothing_would_be_built(
    out: Path, silero: Path, tmp_path: Path
):
    repository.build(DEMO, out, silero=silero)
    (tmp_path / "wrong.onnx").write_bytes(b"wrong")
    with pytest.raises(ModelError, match="wrong.onnx is not the file that was pinned"):
        repository.build(DEMO, out, silero=tmp_path / "wrong.onnx")
    with pytest.raises(ModelError, match="nowhere.onnx is missing"):
        repository.build(DEMO, out, silero=tmp_path / "nowhere.onnx")


def test_a_folder_with_other_things_in_it_is_not_overwritten(out: Path, silero: Path):
    out.mkdir(parents=True)
    (out / "diary.txt").write_text("dear diary")
    with pytest.raises(ModelError, match="holds other things"):
        repository.build(DEMO, out, silero=silero)
    assert contents(out) == {"diary.txt": b"dear diary"}
    (out / "diary.txt").unlink()
    assert repository.build({"fast": DEMO["fast"]}, out, silero=silero)


def test_what_an_interrupted_build_left_behind_is_no_obstacle(out: Path, silero: Path):
    left = out.with_name(out.name + ".new") / "whisper_fast" / "1"
    left.mkdir(parents=True)
    (left / "model.py").write_text("half")
    assert repository.build({"fast": DEMO["fast"]}, out, silero=silero)
    assert not left.parents[1].exists()
    assert json.loads((out / "built.json").read_text())["cores"] > 0
