import shutil
from pathlib import Path

import numpy as np
import pytest
from recordings import recordings

from dalston.triton import graphs, weights
from dalston.triton.adaptation import delta
from dalston.triton.whisper import ADAPTED, Row, Transcript, Whisper

NORM = "model.encoder.layer_norm.weight"


@pytest.fixture(scope="module")
def known(checkpoint: Path) -> weights.Tensors:
    return weights.read(checkpoint / "model.bin")


def test_a_delta_changes_its_tensors_and_no_other(
    checkpoint: Path, known: weights.Tensors, tmp_path: Path
) -> None:
    changed = {NORM: known[NORM] * np.float32(1.25)}
    delta.write(tmp_path / "delta", changed, checkpoint, {"note": "doubled"})
    delta.apply(tmp_path / "delta", checkpoint, tmp_path / "adapted")
    adapted = weights.read(tmp_path / "adapted" / "model.bin")
    assert adapted.keys() == known.keys()
    for name, values in adapted.items():
        expected = changed[NORM].astype(np.float16) if name == NORM else known[name]
        assert np.array_equal(values, expected), name


def test_an_adapted_checkpoint_is_served_like_any_other(
    checkpoint: Path, known: weights.Tensors, tmp_path: Path
) -> None:
    delta.write(tmp_path / "delta", {NORM: known[NORM]}, checkpoint, {})
    delta.apply(tmp_path / "delta", checkpoint, tmp_path / "adapted")
    (answer,) = Whisper(tmp_path / "adapted").transcribe([Row(np.zeros(16_000, np.int16))])
    assert isinstance(answer, Transcript)


@pytest.mark.parametrize("beam_size", [1, 2])
def test_right_sized_windows_are_decoded_with_it_and_full_ones_without(
    beam_size: int, checkpoint: Path, known: weights.Tensors, tmp_path: Path
) -> None:
    """The delta here takes away all that the decoder says."""
    last = "model.decoder.layer_norm.weight"
    delta.write(tmp_path / "delta", {last: known[last] * 0}, checkpoint, {})
    served = shutil.copytree(checkpoint, tmp_path / "served")
    for graph in served.glob("*.onnx"):
        graph.unlink()
    delta.apply(tmp_path / "delta", served, served / ADAPTED)
    graphs.write(served / ADAPTED)
    audio = recordings()[0].cut(recordings()[0].sentences[0])
    adapted = Whisper(served, compute_type="int8_float32", beam_size=beam_size)
    without = Whisper(served, compute_type="int8_float32", beam_size=beam_size, right_sized=False)
    short, full = adapted.transcribe([Row(audio), Row(audio, full_window=True)])
    (expected,) = without.transcribe([Row(audio)])
    assert isinstance(short, Transcript)
    assert isinstance(full, Transcript)
    assert isinstance(expected, Transcript)
    assert full.text == expected.text != ""
    assert short.text != full.text


def test_a_delta_of_another_checkpoint_is_refused(
    checkpoint: Path, known: weights.Tensors, tmp_path: Path
) -> None:
    delta.write(tmp_path / "delta", {NORM: known[NORM]}, checkpoint, {})
    delta.apply(tmp_path / "delta", checkpoint, tmp_path / "other")
    model = tmp_path / "other" / "model.bin"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="belongs to another checkpoint"):
        delta.apply(tmp_path / "delta", tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_delta_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(b"words")
    with pytest.raises(ValueError, match="is no delta"):
        delta.apply(tmp_path / "delta", checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "shape"), [(NORM, (3,)), ("model.encoder.layers.99.final_layer_norm.weight", (128,))]
)
def test_tensors_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, ...], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"model\.encoder"):
        weights.write_changed(
            checkpoint / "model.bin", tmp_path / "out", {name: np.zeros(shape, np.float32)}
        )
    assert not (tmp_path / "out").exists()
