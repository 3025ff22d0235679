"""
The manifest of models: what it says, and which mistakes in it are noticed.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from dalston.triton import models
from dalston.triton.contract import VARIANTS
from dalston.triton.models import ModelError, local_checkpoint, parse_override, profiles

# --- the manifest ---------------------------------------------------------------------------------


# C-01
def test_every_profile_serves_every_variant():
    found = profiles()
    assert list(found) == ["demo", "cpu", "cpu-small", "cpu-tiny.en", "gpu"]
    assert all(tuple(variants) == VARIANTS for variants in found.values())


def test_finals_that_should_be_accurate_get_a_wider_beam():
    for variants in profiles().values():
        assert variants["fast"].beam_size < variants["accurate"].beam_size


def test_every_download_is_pinned_by_revision_and_hashes():
    served = [model for variants in profiles().values() for model in variants.values()]
    assert any(model.checkpoint.hub for model in served)
    for checkpoint in (model.checkpoint for model in served):
        if checkpoint.hub:
            assert len(checkpoint.revision or "") == 40
            assert {"model.bin", "config.json"} < set(checkpoint.sha256)
            assert all(len(value) == 64 for value in checkpoint.sha256.values())
    assert len(models.silero().sha256) == 64
    assert "==" in models.silero().requirement


def test_what_can_be_had_without_the_hub_is_pinned_as_well():
    mirrored = {
        model.checkpoint.id: model.checkpoint
        for variants in profiles().values()
        for model in variants.values()
        if model.checkpoint.mirror
    }
    assert set(mirrored) == {"base", "tiny.en"}
    for checkpoint in mirrored.values():
        assert checkpoint.mirror
        assert set(checkpoint.mirror.files) == set(checkpoint.sha256)
        assert all("==" in requirement for requirement in checkpoint.mirror.requirements)


def test_windows_are_right_sized_only_where_that_is_proven():
    for variants in profiles().values():
        for model in variants.values():
            right_sized = model.checkpoint.windows == "right-sized"
            assert bool(model.checkpoint.proven) == right_sized, model.checkpoint.id


@pytest.mark.parametrize("profile", ["cpu", "cpu-tiny.en"])
def test_deltas_come_with_us_and_are_what_is_pinned(profile: str):
    for model in profiles()[profile].values():
        path = models.delta_of(model.checkpoint)
        assert path
        assert path.stat().st_size < 2_000_000
        other = replace(model.checkpoint, delta_sha256="0" * 64)
        with pytest.raises(ModelError, match="is not the file that was pinned"):
            models.delta_of(other)


def test_a_folder_with_a_delta_of_its_own_gets_right_sized_windows(tmp_path: Path):
    assert local_checkpoint(tmp_path).windows == "full"
    (tmp_path / models.ADAPTATION).write_bytes(b"norms")
    found = local_checkpoint(tmp_path)
    assert found.windows == "right-sized"
    assert models.delta_of(found) == tmp_path / models.ADAPTATION


def test_what_has_to_be_downloaded_says_how_much_that_is():
    for variants in profiles().values():
        for model in variants.values():
            assert bool(model.checkpoint.megabytes) == bool(model.checkpoint.hub)


def test_sources_are_told_in_words(tmp_path: Path):
    served = profiles()
    assert served["demo"]["fast"].checkpoint.source == "comes with dalston"
    assert served["cpu"]["fast"].checkpoint.source == "Systran/faster-whisper-base@ebe41f70"
    assert local_checkpoint(tmp_path).source == str(tmp_path)


@pytest.mark.parametrize(
    "line", ['device = "tpu"', 'instances = "many"', 'beam_size = "five"', 'checkpoint = "unknown"']
)
def test_a_manifest_with_a_mistake_is_not_read(tmp_path: Path, line: str):
    fields = {
        "checkpoint": 'checkpoint = "demo"',
        "compute_type": 'compute_type = "int8"',
        "beam_size": "beam_size = 1",
        "device": 'device = "cpu"',
        "instances": "instances = 1",
    }
    manifest = tmp_path / "models.toml"
    text = '[checkpoints.demo]\nbundled = "checkpoint"\n[profiles.p.fast]\n'
    manifest.write_text(text + "\n".join(fields.values()))
    assert profiles(manifest)["p"]["fast"].checkpoint.bundled == "checkpoint"
    fields[line.split(" ")[0]] = line
    manifest.write_text(text + "\n".join(fields.values()))
    with pytest.raises((ValueError, KeyError)):
        profiles(manifest)


def test_an_override_is_a_variant_and_a_folder():
    assert parse_override("fast=/a/b=c") == ("fast", Path("/a/b=c"))


@pytest.mark.parametrize("text", ["slow=/a", "/a", "fast", "fast=", "=/a", ""])
def test_an_override_that_is_neither_is_refused(text: str):
    with pytest.raises(ModelError, match="write VARIANT=FOLDER, VARIANT one of fast, accurate"):
        parse_override(text)


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ("no json", "Expecting value"),
        ("[1]", "no JSON object"),
        ('{"windows": "huge"}', "windows"),
        ('{"shortest_window": 2}', "shortest_window"),
        ('{"margin": 0.1}', "margin"),
        ('{"hub": "somebody/else"}', "it knows nothing of hub"),
    ],
)
def test_what_a_folder_says_of_itself_is_checked(tmp_path: Path, says: str, sentence: str):
    (tmp_path / "dalston.json").write_text(says)
    with pytest.raises(ModelError, match=rf"(?s)dalston\.json: .*{sentence}"):
        local_checkpoint(tmp_path)


def test_only_what_is_proven_is_right_sized():
    for profile in profiles().values():
        for served in profile.values():
            checkpoint = served.checkpoint
            assert checkpoint.windows == "full" or checkpoint.proven, checkpoint.id


def test_a_local_checkpoint_is_called_like_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert local_checkpoint(Path(".")).id == "mine"
