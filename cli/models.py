"""
`dalston models`: fill the model repository, and show what it can be filled with.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dalston.cli import lock
from dalston.cli.downloads import Downloads
from dalston.triton import conversion, models, repository

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Choice:
    """What somebody wants served."""

    profile: str = "cpu"
    checkpoints: Sequence[str] = ()  # VARIANT=FOLDER, instead of the profile's
    silero: Path | None = None  # the VAD's file, instead of the package index's
    source: str = "auto"  # where checkpoints of the hub may come from
    end_of_turn: bool | Path = False  # whether that model is served too, or its file


@dataclass(frozen=True)
class Adaptation:
    """What somebody wants a delta of, and from what speech."""

    checkpoint: Path
    audio: Path
    out: Path | None  # beside the checkpoint's files if None
    proof: Path | None  # recordings to prove it by; a part of `audio` if None
    crops: int
    processes: int


def build(choice: Choice, out: Path) -> None:
    """Build the repository `out`, if it is not up to date. Raises ModelError."""
    known = models.profiles()
    if choice.profile not in known:
        raise models.ModelError(f"no profile {choice.profile!r}; there are {', '.join(known)}")
    if choice.source not in models.SOURCES:
        there_are = ", ".join(models.SOURCES)
        raise models.ModelError(f"no source {choice.source!r}; there are {there_are}")
    served = dict(known[choice.profile])
    for text in choice.checkpoints:
        variant, folder = models.parse_override(text)
        served[variant] = replace(served[variant], checkpoint=models.local_checkpoint(folder))
    with Downloads(console, "building the model repository") as downloads:
        built = repository.build(
            served,
            out,
            silero=choice.silero,
            source=choice.source,
            end_of_turn=choice.end_of_turn,
            tell=console.print,
            progress=downloads.show,
        )
    console.print(f"{out} is {'built' if built else 'up to date'}: profile {choice.profile}")


def main(choice: Choice, out: Path) -> int:
    """Build it; the exit status."""
    try:
        # A stack that runs on this folder would find other models there than it knows.
        out.parent.mkdir(parents=True, exist_ok=True)
        with lock.only_user(out.parent):
            build(choice, out)
    except (models.ModelError, lock.FolderInUse, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def show() -> int:
    """Print every profile and every checkpoint; the exit status."""
    known = models.profiles()
    served, checkpoints = Table(box=None), dict[str, models.Checkpoint]()
    for column in ("PROFILE", "VARIANT", "CHECKPOINT", "RUNS AS"):
        served.add_column(column)
    for profile, variants in known.items():
        for variant, model in variants.items():
            runs = f"{model.compute_type} on {model.device}, beam {model.beam_size}"
            served.add_row(profile, variant, model.checkpoint.id, runs)
            checkpoints[model.checkpoint.id] = model.checkpoint
    sources = Table(box=None)
    for column in ("CHECKPOINT", "SIZE", "FROM"):
        sources.add_column(column, justify="right" if column == "SIZE" else "left")
    for checkpoint in checkpoints.values():
        size = f"{checkpoint.megabytes} MB" if checkpoint.megabytes else ""
        places = [checkpoint.source]
        if checkpoint.mirror:
            places.append("or " + "\n + ".join(checkpoint.mirror.requirements))
        sources.add_row(checkpoint.id, size, "\n".join(places))
    Console(highlight=False).print(served, "", sources, sep="\n")
    return 0


def adapt(work: "Adaptation") -> int:
    """Make a delta for a checkpoint; the exit status."""
    try:
        from dalston.triton.adaptation.adapt import AdaptationError, Work
        from dalston.triton.adaptation.adapt import adapt as make
    except ModuleNotFoundError as error:
        print(
            f"{error}: training needs more than serving does: pip install torch soundfile soxr",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        try:
            checkpoint = work.checkpoint
            if conversion.is_hugging_face(checkpoint):
                checkpoint = Path(scratch) / "checkpoint"
                conversion.convert(work.checkpoint, checkpoint, conversion.STORED)
            out = work.out or work.checkpoint / models.ADAPTATION
            asked = Work(
                checkpoint, work.audio, out, work.proof, work.crops, processes=work.processes
            )
            make(asked, console.print)
        except (AdaptationError, conversion.CheckpointError, ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0
