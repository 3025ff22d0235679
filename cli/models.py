"""
`dalston models`: fill the model repository, and show what it can be filled with.
"""

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dalston.cli.data import data_folder
from dalston.triton import models, repository

console = Console(stderr=True, highlight=False)


def build(
    profile: str, data_dir: Path | None, out: Path | None, overrides: list[str], silero: Path | None
) -> int:
    """Build the repository of a profile; the exit status."""
    try:
        return _build(profile, out or data_folder(data_dir) / "model_repository", overrides, silero)
    except models.ModelError as error:
        print(error, file=sys.stderr)
        return 1


def _build(profile: str, out: Path, overrides: list[str], silero: Path | None) -> int:
    known = models.profiles()
    if profile not in known:
        raise models.ModelError(f"no profile {profile!r}; there are {', '.join(known)}")
    served = dict(known[profile])
    for text in overrides:
        variant, folder = models.parse_override(text)
        served[variant] = replace(served[variant], checkpoint=models.local_checkpoint(folder))
    with console.status("building the model repository"):
        built = repository.build(served, out, silero=silero, tell=console.print)
    console.print(f"{out} is {'built' if built else 'up to date'}: profile {profile}")
    return 0


def show() -> int:
    """Print every profile; the exit status."""
    table = Table(box=None)
    for column in ("PROFILE", "VARIANT", "CHECKPOINT", "FROM", "RUNS AS"):
        table.add_column(column)
    for profile, variants in models.profiles().items():
        for variant, model in variants.items():
            runs = f"{model.compute_type} on {model.device}, beam {model.beam_size}"
            table.add_row(profile, variant, model.checkpoint.id, model.checkpoint.source, runs)
    Console(highlight=False).print(table)
    return 0
