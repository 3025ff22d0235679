from pathlib import Path

import numpy as np
import pytest
import soundfile

from dalston.triton.adaptation.crops import LONGEST, SHORTEST, Recording, crops, noise, recordings

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("speech")
    random = np.random.default_rng(0)
    for name, seconds in (("one.wav", 3), ("two_de.flac", 40), ("fr/three.wav", 12)):
        (made / name).parent.mkdir(exist_ok=True)
        soundfile.write(made / name, 0.1 * random.standard_normal(seconds * RATE), RATE)
    (made / "notes.txt").write_text("no audio")
    return made


def test_languages_are_taken_from_the_names_of_files_and_folders(folder: Path) -> None:
    found = {one.path.name: one.language for one in recordings(folder, ["en", "de", "fr"])}
    assert found == {"one.wav": "auto", "two_de.flac": "de", "three.wav": "fr"}


def test_the_same_seed_gives_the_same_crops(folder: Path) -> None:
    sources = recordings(folder, ["de"])
    first, again, other = (list(crops(sources, 12, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.audio, b.audio) for a, b in zip(first, other, strict=True))


def test_crops_fit_into_a_window_and_some_hold_no_speech(folder: Path) -> None:
    made = list(crops(recordings(folder, ["de"]), 60, 1))
    assert len(made) == 60
    assert all(SHORTEST <= crop.seconds <= LONGEST for crop in made)
    assert 0 < sum(not crop.name for crop in made) < 20


def test_another_sample_rate_and_more_channels_are_heard_as_16_khz_mono(tmp_path: Path) -> None:
    time = np.arange(4 * 44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], 1), 44_100)
    made = [c for c in crops([Recording(tmp_path / "tone.wav", "auto")], 8, 1) if c.name]
    assert all(crop.audio.ndim == 1 and crop.seconds < 5.5 for crop in made)


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "hum"])
def test_noise_is_as_loud_as_it_says(kind: str) -> None:
    made = noise(kind, 16_001, np.random.default_rng(1))
    assert len(made) == 16_001
    assert np.sqrt(np.square(made).mean()) == pytest.approx(1, rel=0.01)
