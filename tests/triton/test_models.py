"""
Where files come from: the manifest, folders, a hub, wheels; and that none is used that is not the
one it should be. The hub is a small one on this machine, and what talks to it is the real library.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path

import hub
import pytest
from hub import Hub

from dalston.triton import models
from dalston.triton.contract import VARIANTS
from dalston.triton.greedy import DECODER, ENCODER, HEAD
from dalston.triton.models import (
    Checkpoint,
    ModelError,
    fetch,
    fetch_silero,
    local_checkpoint,
    parse_override,
    profiles,
    verify,
)

FILES = ("model.bin", "config.json", "vocabulary.json")


# --- the manifest ---------------------------------------------------------------------------------


def test_every_profile_serves_every_variant():
    found = profiles()
    assert list(found) == ["demo", "cpu", "gpu"]
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


def test_sources_are_told_in_words(tmp_path: Path):
    served = profiles()
    assert served["demo"]["fast"].checkpoint.source == "comes with dalston"
    assert served["cpu"]["fast"].checkpoint.source == "Systran/faster-whisper-small@536b0662"
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


def test_a_local_checkpoint_is_called_like_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert local_checkpoint(Path(".")).id == "mine"


# --- folders --------------------------------------------------------------------------------------


def test_the_bundled_checkpoint_is_where_it_came_with_us(hugging_face: Path):
    folder = fetch(profiles()["demo"]["fast"].checkpoint)
    assert folder.resolve() == hugging_face


def test_folders_of_both_kinds_are_taken_as_they_are(checkpoint: Path, hugging_face: Path):
    assert fetch(local_checkpoint(checkpoint)) == checkpoint
    assert fetch(local_checkpoint(hugging_face)) == hugging_face


def test_an_older_vocabulary_will_do(tmp_path: Path):
    for name in ("model.bin", "config.json", "vocabulary.txt"):
        (tmp_path / name).touch()
    assert fetch(local_checkpoint(tmp_path)) == tmp_path


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="nowhere is no folder"):
        fetch(local_checkpoint(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="file is no folder"):
        fetch(local_checkpoint(tmp_path / "file"))


@pytest.mark.parametrize("missing", FILES)
def test_a_folder_that_lacks_a_file_is_refused_with_its_name(tmp_path: Path, missing: str):
    for name in FILES:
        if name != missing:
            (tmp_path / name).touch()
    with pytest.raises(ModelError, match=f"holds no Whisper checkpoint: {missing} missing"):
        fetch(local_checkpoint(tmp_path))


def test_a_file_is_what_its_hash_says_or_it_is_not_used(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    verify(path, right)
    path.write_bytes(b"heights")
    wrong = hashlib.sha256(b"heights").hexdigest()
    with pytest.raises(ModelError, match=f"its SHA-256 is {wrong}, not {right}"):
        verify(path, right)
    with pytest.raises(ModelError, match="nowhere is missing"):
        verify(tmp_path / "nowhere", right)


def test_a_pinned_folder_is_verified(checkpoint: Path):
    data = (checkpoint / "config.json").read_bytes()
    pinned = Checkpoint(
        "x", folder=checkpoint, sha256={"config.json": hashlib.sha256(data).hexdigest()}
    )
    assert fetch(pinned) == checkpoint
    with pytest.raises(ModelError, match="is not the file that was pinned"):
        fetch(Checkpoint("x", folder=checkpoint, sha256={"config.json": "0" * 64}))


# --- the hub --------------------------------------------------------------------------------------

# The hub's library reads its environment when it is imported: each case is a process of its own.
_BUILD = """
import sys
from pathlib import Path
from dalston.triton import models, repository

manifest, silero, out = map(Path, sys.argv[1:])
try:
    built = repository.build(models.profiles(manifest)["test"], out, silero=silero)
except models.ModelError as error:
    sys.exit(f"ModelError: {error}")
print("built" if built else "up to date")
"""


class Machine:
    """One that has a cache of the hub's files, and builds a repository from them."""

    def __init__(self, folder: Path, silero: Path):
        self._folder, self._silero = folder, silero
        self.built = folder / "built" / "whisper_fast" / "1" / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, hub: Hub, revision: str = hub.REVISION, **environment: str
    ) -> subprocess.Popen[str]:
        manifest = self._folder / "models.toml"
        hashes = "\n".join(f'"{name}" = "{hub.sha256(name)}"' for name in FILES)
        manifest.write_text(
            f"""
            [checkpoints.tiny]
            hub = "owner/whisper-tiny"
            revision = "{revision}"
            [checkpoints.tiny.sha256]
            {hashes}
            [profiles.test.fast]
            checkpoint = "tiny"
            compute_type = "int8"
            beam_size = 1
            device = "cpu"
            instances = 1
            """
        )
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        ours |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(self._folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return subprocess.Popen(
            [sys.executable, "-c", _BUILD, manifest, self._silero, self._folder / "built"],
            env=ours | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def build(self, hub: Hub, revision: str = hub.REVISION, **environment: str) -> str:
        """What it came to: "built", "up to date", or "ModelError: " and a sentence."""
        return outcome(self.start(hub, revision, **environment))


def outcome(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=90)
    assert "Traceback" not in errors, errors
    return (out if process.returncode == 0 else errors).strip().splitlines()[-1]


@pytest.fixture(scope="module")
def silero_path(model_repository: Path) -> Path:
    return model_repository / "silero_vad" / "1" / "silero.onnx"


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> dict[str, bytes]:
    """What the repository on the hub holds: the demo checkpoint, and more than is asked for."""
    data = {name: (checkpoint / name).read_bytes() for name in FILES}
    return data | {"README.md": b"# a checkpoint", "preprocessor_config.json": b"{}"}


@pytest.fixture
def a_hub(files: dict[str, bytes]) -> Generator[Hub]:
    with hub.serving(files) as serving:
        yield serving


@pytest.fixture
def machine(tmp_path: Path, silero_path: Path) -> Machine:
    return Machine(tmp_path / "machine", silero_path)


@pytest.fixture(scope="module", autouse=True)
def unreachable(
    tmp_path_factory: pytest.TempPathFactory, silero_path: Path, files: dict[str, bytes]
) -> Generator[Callable[[], str]]:
    """A build from a hub that refuses connections. The hub's library tries for half a minute,
    so this is begun first and looked at last."""
    nobody = Hub(files, url="http://127.0.0.1:9")
    process = Machine(tmp_path_factory.mktemp("unreachable"), silero_path).start(nobody)
    yield lambda: outcome(process)
    process.kill()
    process.communicate()


def test_the_pinned_revision_is_downloaded_verified_and_built(
    a_hub: Hub, machine: Machine, files: dict[str, bytes]
):
    assert machine.build(a_hub) == "built"
    graphs = {ENCODER, DECODER, HEAD}  # written from what was downloaded
    assert {path.name for path in machine.built.iterdir()} == {*FILES, *graphs}
    assert all((machine.built / name).read_bytes() == files[name] for name in FILES)
    assert a_hub.requests[0] == f"GET /api/models/{hub.REPOSITORY}/tree/{hub.REVISION}"
    at = f"/{hub.REPOSITORY}/resolve/{hub.REVISION}"
    # Only what the manifest names is fetched; large files come from the CDN.
    assert {request for request in a_hub.requests if request.startswith("GET")} == {
        a_hub.requests[0],
        f"GET {at}/config.json",
        "GET /cdn/model.bin",
        "GET /cdn/vocabulary.json",
    }


def test_a_second_build_needs_no_network(a_hub: Hub, machine: Machine):
    assert machine.build(a_hub) == "built"
    a_hub.requests.clear()
    assert machine.build(a_hub) == "up to date"
    assert machine.build(a_hub, HF_HUB_OFFLINE="1") == "up to date"
    assert a_hub.requests == []
    # Nor does a build of the same checkpoint into another place.
    for path in machine.built.iterdir():
        path.unlink()
    (machine.built.parents[2] / "built.json").unlink()
    machine.built.parents[2].rename(machine.built.parents[3] / "elsewhere")
    assert machine.build(a_hub, HF_HUB_OFFLINE="1") == "built"
    assert a_hub.requests == []


def test_a_tampered_file_is_refused_and_not_built(a_hub: Hub, machine: Machine):
    a_hub.tampered["model.bin"] = a_hub.files["model.bin"][:-1] + b"!"
    sentence = machine.build(a_hub)
    assert sentence.startswith("ModelError: ")
    assert "is not the file that was pinned" in sentence
    assert a_hub.sha256("model.bin") in sentence
    assert not machine.built.exists()
    # It stays refused for as long as it is there, and what the sentence says to do helps.
    assert "is not the file that was pinned" in machine.build(a_hub)
    Path(sentence.removeprefix("ModelError: ").split(" ")[0]).unlink()
    a_hub.tampered.clear()
    assert machine.build(a_hub) == "built"


def test_a_small_file_is_verified_as_well(a_hub: Hub, machine: Machine):
    config = json.loads(a_hub.files["config.json"])
    tampered = json.dumps(config | {"suppress_ids": [9]})
    a_hub.tampered["config.json"] = tampered.ljust(len(a_hub.files["config.json"])).encode()[
        : len(a_hub.files["config.json"])
    ]
    assert "is not the file that was pinned" in machine.build(a_hub)


def test_a_file_shorter_than_the_hub_says_is_not_used(a_hub: Hub, machine: Machine):
    a_hub.tampered["model.bin"] = a_hub.files["model.bin"][:-1]
    sentence = machine.build(a_hub)
    assert sentence.startswith("ModelError: owner/whisper-tiny@01234567: ")
    assert "or fetch it elsewhere and give its folder by --checkpoint" in sentence
    assert not machine.built.exists()
    a_hub.tampered.clear()
    assert machine.build(a_hub) == "built"


def test_a_download_that_breaks_off_is_resumed(
    a_hub: Hub, machine: Machine, files: dict[str, bytes]
):
    a_hub.broken["model.bin"] = [100_000]
    assert machine.build(a_hub) == "built"
    assert a_hub.requests.count("GET /cdn/model.bin") == 2
    assert (machine.built / "model.bin").read_bytes() == files["model.bin"]


def test_a_download_that_breaks_off_for_good_is_not_used(a_hub: Hub, machine: Machine):
    a_hub.broken["model.bin"] = [100_000, *[0] * 20]
    sentence = machine.build(a_hub)
    assert sentence.startswith("ModelError: owner/whisper-tiny@01234567: ")
    assert "peer closed connection" in sentence
    assert not machine.built.exists()
    a_hub.broken.clear()
    assert machine.build(a_hub) == "built"


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (404, "RepoNotFound", "RepositoryNotFoundError"),
        (404, "RevisionNotFound", "RevisionNotFoundError"),
        (401, "GatedRepo", "GatedRepoError"),
    ],
)
def test_a_repository_that_is_not_to_be_had_is_an_error_with_a_sentence(
    a_hub: Hub, machine: Machine, status: int, code: str, name: str
):
    a_hub.refused = status, code
    sentence = machine.build(a_hub)
    assert sentence.startswith(f"ModelError: owner/whisper-tiny@01234567: {name}: {status} ")
    assert "or fetch it elsewhere and give its folder by --checkpoint" in sentence


def test_another_revision_than_the_hub_has_is_not_replaced_by_one_it_has(
    a_hub: Hub, machine: Machine
):
    assert "RevisionNotFoundError" in machine.build(a_hub, revision="f" * 40)


def test_a_hub_that_lacks_a_file_is_an_error(a_hub: Hub, machine: Machine):
    a_hub.hidden.add("vocabulary.json")
    assert machine.build(a_hub).endswith("vocabulary.json is missing")


def test_offline_with_nothing_cached_says_what_to_do(a_hub: Hub, machine: Machine):
    sentence = machine.build(a_hub, HF_HUB_OFFLINE="1")
    assert sentence.startswith("ModelError: owner/whisper-tiny@01234567 is not on this machine")
    assert "(HF_HUB_OFFLINE). Connect, or fetch it elsewhere and give its folder by" in sentence
    assert a_hub.requests == []


# --- the wheel of the VAD -------------------------------------------------------------------------


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip looks into."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in (
        ("NO_INDEX", "1"),
        ("FIND_LINKS", str(folder)),
        ("CONFIG_FILE", os.devnull),
    ):
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def wheel(folder: Path, members: dict[str, bytes]) -> None:
    """The wheel that the manifest asks for, with these files in it."""
    name, version = models.silero().requirement.split("==")
    name = name.replace("-", "_")
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
        for member, data in members.items():
            file.writestr(member, data)


def test_the_vad_is_taken_out_of_its_wheel(wheels: Path, tmp_path: Path, silero_path: Path):
    wheel(wheels, {models.silero().member: silero_path.read_bytes()})
    fetch_silero(tmp_path / "silero.onnx")
    assert (tmp_path / "silero.onnx").read_bytes() == silero_path.read_bytes()


def test_another_vad_in_the_wheel_is_refused(wheels: Path, tmp_path: Path):
    wheel(wheels, {models.silero().member: b"another"})
    with pytest.raises(ModelError, match="is not the file that was pinned"):
        fetch_silero(tmp_path / "silero.onnx")
    assert not (tmp_path / "silero.onnx").exists()


def test_a_wheel_without_the_vad_is_refused(wheels: Path, tmp_path: Path):
    wheel(wheels, {"silero_vad/__init__.py": b""})
    with pytest.raises(ModelError, match="is not the wheel it should be"):
        fetch_silero(tmp_path / "silero.onnx")


def test_without_the_wheel_the_sentence_says_how_to_do_without_an_index(
    wheels: Path, tmp_path: Path
):
    with pytest.raises(ModelError, match="cannot be had from the package index: .*by --silero"):
        fetch_silero(tmp_path / "silero.onnx")


def test_a_vad_that_is_at_hand_is_verified_and_copied(tmp_path: Path, silero_path: Path):
    fetch_silero(tmp_path / "silero.onnx", silero_path)
    assert (tmp_path / "silero.onnx").read_bytes() == silero_path.read_bytes()
    (tmp_path / "other.onnx").write_bytes(b"another")
    with pytest.raises(ModelError, match="is not the file that was pinned"):
        fetch_silero(tmp_path / "silero.onnx", tmp_path / "other.onnx")


# --- at last --------------------------------------------------------------------------------------


def test_a_hub_that_cannot_be_reached_is_an_error_that_says_what_to_do(
    unreachable: Callable[[], str],
):
    sentence = unreachable()
    assert sentence.startswith("ModelError: owner/whisper-tiny@01234567 is not on this machine")
    assert "the hub cannot be reached" in sentence
    assert "Connection refused" in sentence
