from pathlib import Path

import numpy as np
import pytest

from dalston.triton import weights
from dalston.triton.adaptation import delta
from dalston.triton.whisper import Row, Transcript, Whisper

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
