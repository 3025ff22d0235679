"""
The checked-in model_repository/ + weights -> the repository that Triton serves.

The source stays as it is; in the copy, what depends on machine and profile is set on the parsed
configuration: devices, instances, the parameters of the checkpoint. The copy is whole in itself
and can be moved. It is built beside its place and put there last, so a half-built one is never
served; and a build that would change nothing is skipped.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dalston.triton import conversion, graphs, greedy, models, sources, weights
from dalston.triton.adaptation import delta
from dalston.triton.contract import (
    LANGUAGES,
    SAMPLE_RATE,
    TURN_MODEL,
    VAD_MODEL,
    whisper_model,
)
from dalston.triton.models import Checkpoint, ModelError, Served, Source
from dalston.triton.vocabulary import Vocabulary
from dalston.triton.wheels import Progress, untold
from dalston.triton.whisper import ADAPTED

# Beside the package: a link in a checkout, package data in a wheel.
SOURCE = Path(__file__).parent.parent / "model_repository"
_STAMP = "built.json"


def build(
    served: Mapping[str, Served],
    out: Path,
    *,
    silero: Path | None = None,
    end_of_turn: bool | Path = False,
    cores: int | None = None,
    source: Source = "auto",
    tell: Callable[[str], None] = lambda _: None,
    progress: Progress = untold,
) -> bool:
    """Build the repository `out` for these variants; False if it was up to date.

    silero: the VAD's file, if it need not be fetched. end_of_turn: whether its model is served too,
    or its file. source: where checkpoints of the hub may come from. `tell` is given a line for each
    step, `progress` the bytes of downloads. Raises ModelError, leaving what was there.
    """
    out = out.resolve()
    if out.exists() and not (out / _STAMP).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} holds other things: give a folder that is new, or built by this")
    if silero is not None:
        sources.verify(silero, models.silero().sha256)
    if isinstance(end_of_turn, Path):
        sources.verify(end_of_turn, models.end_of_turn().sha256)
    cores = cores or len(os.sched_getaffinity(0))
    folders = dict[str, Path]()
    for variant, model in served.items():
        tell(f"{variant}: {model.checkpoint.id} ({model.checkpoint.source})")
        folders[variant] = sources.fetch(model.checkpoint, source, tell, progress)
    stamp = _stamp(served, folders, cores, bool(end_of_turn))
    if _read_stamp(out) == stamp:
        return False

    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        tell(f"{VAD_MODEL}: {models.silero().requirement}")
        _copy_source(VAD_MODEL, new)
        sources.fetch_silero(new / VAD_MODEL / "1" / "silero.onnx", silero, progress)
        if end_of_turn:
            tell(f"{TURN_MODEL}: {models.end_of_turn().requirement}")
            _copy_source(TURN_MODEL, new)
            local = end_of_turn if isinstance(end_of_turn, Path) else None
            sources.fetch_end_of_turn(new / TURN_MODEL / "1" / "end_of_turn.onnx", local, progress)
        for variant, model in served.items():
            _whisper(variant, model, folders[variant], new, cores, tell)
        (new / _STAMP).write_text(json.dumps(stamp, indent=1))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)
    return True


def _whisper(
    variant: str,
    model: Served,
    folder: Path,
    new: Path,
    cores: int,
    tell: Callable[[str], None],
) -> None:
    name = whisper_model(variant)
    _copy_source(name, new)
    target = new / name / "1" / "checkpoint"
    change = models.delta_of(model.checkpoint)
    right_sized = target / ADAPTED if change else target
    try:
        if conversion.is_hugging_face(folder):
            stored = conversion.STORED if change else model.compute_type
            tell(f"{variant}: converting to {stored}")
            conversion.convert(folder, target, stored)
        else:
            _link(folder, target)
        if change:
            tell(f"{variant}: adapting it to right-sized windows")
            delta.apply(change, target, right_sized)
        vocabulary = Vocabulary.load(target)
    except (conversion.CheckpointError, ValueError, OSError) as error:
        raise ModelError(f"{model.checkpoint.id} cannot be served: {error}") from None
    if model.device == "cpu" and model.beam_size == 1:
        tell(f"{variant}: writing the graphs of the greedy decoder")
        try:
            graphs.write(right_sized, quantized=model.compute_type.startswith("int8"))
            if change:
                _keep_graphs(right_sized)
        except ValueError as error:
            tell(f"{variant}: {error}; CTranslate2 decodes it, slower")
    if not model.checkpoint.sha256:
        _try(target, model.checkpoint)
    known = vocabulary.languages if vocabulary.multilingual else ["en"]
    languages = model.checkpoint.languages or [code for code in LANGUAGES if code in known]
    config = _config(new / name)
    _set_device(config, model, cores)
    for key, value in {
        "checkpoint_id": model.checkpoint.id,
        "languages": " ".join(languages),
        "translates": "yes" if vocabulary.multilingual and model.checkpoint.translates else "no",
        "compute_type": model.compute_type,
        "beam_size": str(model.beam_size),
        "windows": model.checkpoint.windows,
        "shortest_window": str(model.checkpoint.shortest_window),
        "margin": str(model.checkpoint.margin),
    }.items():
        config.parameters[key].string_value = value
    (new / name / "config.pbtxt").write_text(text_format.MessageToString(config))


def _keep_graphs(folder: Path) -> None:
    """The weights that they were made of are not needed any more."""
    for path in folder.iterdir():
        if path.name not in (greedy.ENCODER, greedy.DECODER, greedy.HEAD):
            path.unlink()


def _set_device(config: Any, model: Served, cores: int) -> None:
    (group,) = config.instance_group
    gpu = model.device == "gpu"
    group.kind = group.KIND_GPU if gpu else group.KIND_CPU
    group.count = cores if model.instances == "cores" else model.instances
    if not gpu:  # there a batch costs what its rows cost one by one
        config.dynamic_batching.max_queue_delay_microseconds = 0


def _config(folder: Path) -> Any:
    return text_format.Parse(
        (folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig()
    )


def _copy_source(model: str, new: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / model, new / model, ignore=ignore)  # follows links


def _link(folder: Path, target: Path) -> None:
    """The files of a CTranslate2 folder; hard links where the file system allows, for weights are
    large and two variants may share them."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file():
            try:
                os.link(path.resolve(), target / path.name)
            except OSError:
                shutil.copy(path, target / path.name)


def _try(folder: Path, checkpoint: Checkpoint) -> None:
    """Whether weights that nobody has pinned can be run at all. Raises ModelError."""
    from dalston.triton.whisper import Row, Transcript, Whisper

    try:
        (result,) = Whisper(folder).transcribe([Row(np.zeros(SAMPLE_RATE, np.int16))])
    except ValueError as error:
        result = error
    if not isinstance(result, Transcript):
        reason = str(result).removeprefix(f"{folder}: ")
        raise ModelError(f"{checkpoint.id} is broken: {reason}")


def _stamp(
    served: Mapping[str, Served], folders: Mapping[str, Path], cores: int, end_of_turn: bool
) -> dict[str, Any]:
    """What the result depends on."""
    digest = hashlib.sha256()
    code = [*SOURCE.rglob("*.pbtxt"), *SOURCE.rglob("model.py")]
    modules = [
        conversion.__file__,
        graphs.__file__,
        greedy.__file__,
        weights.__file__,
        delta.__file__,
    ]
    for path in sorted([*code, *map(Path, modules), models.MANIFEST, Path(__file__)]):
        digest.update(path.read_bytes())
    files = {
        variant: [
            [path.name, *_version(path, served[variant].checkpoint)]
            for path in sorted(folder.iterdir())
            if path.is_file()
        ]
        for variant, folder in folders.items()
    }
    return json.loads(
        json.dumps(
            {
                "code": digest.hexdigest(),
                "cores": cores,
                "weight_levels": graphs.weight_levels(),
                "end_of_turn": end_of_turn,
                "served": {variant: repr(model) for variant, model in served.items()},
                "weights": files,
            }
        )
    )


def _version(path: Path, checkpoint: Checkpoint) -> list[str | int]:
    """What changes with a file. Ours is 13 MB, and each checkout has it with another time; to read
    others would take seconds, and those that are pinned have just been read."""
    if path.name in checkpoint.sha256:
        return [checkpoint.sha256[path.name]]
    if checkpoint.bundled:
        return [hashlib.sha256(path.read_bytes()).hexdigest()]
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _read_stamp(out: Path) -> dict[str, Any] | None:
    try:
        return json.loads((out / _STAMP).read_text())
    except (OSError, json.JSONDecodeError):
        return None
