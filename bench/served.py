"""
The stack under measurement: started from a checkpoint, and what its processes use.
"""

import os
import re
import sys
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import random_whisper

from dalston.cli import up
from dalston.cli.models import Choice
from dalston.triton.contract import VARIANTS

_RECORDER = Path(__file__).resolve().parent / "recorder.py"
_INSTANT = Path(__file__).resolve().parent / "instant.py"
# What a process is, by words of its command line.
_ROLES = {
    "models": ("triton_python_backend_stub", _INSTANT.name),
    "tritonserver": ("bin/tritonserver",),
    "gateway": ("cli.main gateway",),
    "worker": ("cli.main worker", _RECORDER.name),
    "redis": ("redis-server",),
}
# Counters of Triton's metrics page, summed over models that begin like this.
_COUNTERS = {
    "requests": "nv_inference_request_success",
    "executions": "nv_inference_exec_count",
    "queue_us": "nv_inference_queue_duration_us",
}


@dataclass(frozen=True)
class Usage:
    """So far, of the whole stack."""

    core_s: dict[str, float]  # processor time by role
    rss_mb: dict[str, float]  # memory by role
    triton: dict[str, dict[str, float]]  # counters of "whisper" and of "silero_vad"

    def since(self, before: "Usage") -> "Usage":
        """What was used between two; memory is that of the later."""

        def less(later: dict[str, float], earlier: dict[str, float]) -> dict[str, float]:
            return {name: value - earlier[name] for name, value in later.items()}

        return replace(
            self,
            core_s=less(self.core_s, before.core_s),
            triton={name: less(self.triton[name], before.triton[name]) for name in self.triton},
        )


@dataclass(frozen=True)
class Stack:
    url: str  # ws://
    metrics_url: str | None  # None: what is in Triton's place has none

    def usage(self) -> Usage:
        core_s, rss_mb = dict.fromkeys(_ROLES, 0.0), dict.fromkeys(_ROLES, 0.0)
        for role, process in self.processes():
            try:
                times, memory = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue
            core_s[role] += times.user + times.system
            rss_mb[role] += memory / 1e6
        return Usage(core_s, rss_mb, self._triton())

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """Each with its role."""
        found = list[tuple[str, psutil.Process]]()
        for process in psutil.Process().children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            role = next((r for r, words in _ROLES.items() if any(w in line for w in words)), None)
            if role:
                found.append((role, process))
        return found

    def _triton(self) -> dict[str, dict[str, float]]:
        page = ""
        if self.metrics_url:
            with urllib.request.urlopen(self.metrics_url, timeout=5) as response:
                page = response.read().decode()
        found = dict[str, dict[str, float]]()
        for model in ("whisper", "silero_vad"):
            found[model] = {}
            for name, counter in _COUNTERS.items():
                lines = re.findall(rf'^{counter}{{model="{model}[^}}]*}} (\S+)', page, re.M)
                found[model][name] = sum(map(float, lines))
        return found


def chosen(profile: str, checkpoint: str | None = None) -> tuple[str, Choice]:
    """What that profile serves, or a checkpoint instead, run as the profile runs its own: a folder,
    or VARIANT=FOLDER. All variants are then made of it. First comes a name for it."""
    if checkpoint is None:
        return profile, Choice(profile)
    folder = Path(checkpoint.rpartition("=")[2]).resolve()
    return folder.name, Choice(profile, [f"{variant}={folder}" for variant in VARIANTS])


def prepare(folder: Path, checkpoint: str, choice: Choice | None = None) -> tuple[Path, Path]:
    """The model repository of a checkpoint, and a folder for the stack's files. choice: of another
    than these; `checkpoint` is only its name."""
    choice = choice or Choice("demo")
    if checkpoint == "tiny":
        weights = folder / "tiny-checkpoint"
        if not weights.exists():
            random_whisper.write_tiny(weights)
        choice = Choice("demo", [f"fast={weights}", f"accurate={weights}"])
    return up.prepare(choice, folder / checkpoint)


@asynccontextmanager
async def running(
    folder: Path,
    checkpoint: str,
    capacity: int,
    recording: Path | None = None,
    choice: Choice | None = None,
) -> AsyncGenerator[Stack]:
    """The stack with room for `capacity` sessions. checkpoint: "demo", "tiny" for random weights of
    that size, or "instant" for no models at all; another with a choice. Its files go to `folder`.
    recording: where the worker writes what it asked of the models."""
    repository, run = prepare(folder, checkpoint, choice)
    os.environ["MAX_SESSIONS"] = str(capacity)
    os.environ.pop("DALSTON_API_KEYS", None)  # its callers have none
    listener = up.listen("127.0.0.1")
    port = listener.getsockname()[1]
    parts = up.parts(repository, run, listener, 1, 5.0)
    triton = next(part for part in parts if part.name == "triton").command
    metrics = f"http://127.0.0.1:{triton[triton.index('--metrics-port') + 1]}/metrics"
    if recording:
        worker = next(part for part in parts if part.name == "worker-1")
        worker.command = [sys.executable, str(_RECORDER), str(recording)]
    if checkpoint == "instant":
        http_port = triton[triton.index("--http-port") + 1]
        triton[:] = [sys.executable, str(_INSTANT), http_port]
    async with up.running(parts, f"http://127.0.0.1:{port}"):
        yield Stack(f"ws://127.0.0.1:{port}", None if checkpoint == "instant" else metrics)
