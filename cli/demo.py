"""
`dalston demo`: the stack on free ports, a recording streamed to it as it was spoken, the text as
it comes, and how long things took.
"""

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from dalston import client
from dalston.cli import up
from dalston.cli.display import Display
from dalston.cli.models import Choice
from dalston.cli.stream import SourceError, file_audio
from dalston.triton.models import BUNDLED, ModelError
from dalston.triton.process import free_port

console = Console(highlight=False)
SAMPLES = BUNDLED / "samples"


@dataclass
class Clock:
    """When what was heard. Audio time t was sent at `began + t`."""

    began: float = 0.0
    first_partial: list[float] = field(default_factory=list[float])  # after the onset
    final: list[float] = field(default_factory=list[float])  # after the endpoint was decided
    speech_end: list[float] = field(default_factory=list[float])  # final after the speech ended
    _onset: float | None = None
    _decided: float = 0.0
    _ended: float = 0.0

    def receive(self, event: client.Event) -> None:
        now = time.monotonic()
        match event["type"]:
            case "vad.speech_start":
                self._onset = event["timestamp"]
            case "transcript.partial" if self._onset is not None:
                self.first_partial.append(now - self.began - self._onset)
                self._onset = None
            case "vad.speech_end":
                self._decided, self._ended = now, event["timestamp"]
            case "transcript.final":
                self.final.append(now - self._decided)
                self.speech_end.append(now - self.began - self._ended)
            case _:
                pass


async def _demo(choice: Choice, data_dir: Path | None, file: Path) -> int:
    began = time.monotonic()
    repository, run = up.prepare(choice, data_dir)
    os.environ.pop("DALSTON_API_KEYS", None)  # who calls this stack is ourselves
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    stack = up.parts(repository, run, "127.0.0.1", port, 1, 5.0)
    async with up.running(stack, url):
        console.print(f"the stack is up after {time.monotonic() - began:.1f} s; {file.name} plays")
        clock, ended = await _play(f"ws://127.0.0.1:{port}", file)
        console.print(f"\n[bold]{ended['transcript']}[/bold]\n")
        _print_latencies(clock, ended)
        with console.status("stopping"):
            pass
    return 0 if ended["transcript"] else 1


async def _play(url: str, file: Path) -> tuple[Clock, client.Event]:
    form, chunks = await file_audio(file, fast=False)
    clock = Clock()
    parameters: dict[str, Any] = {"sample_rate": form.sample_rate, "channels": form.channels}
    async with client.connect(url, **parameters) as session:

        async def send() -> None:
            clock.began = time.monotonic()
            async for chunk in chunks:
                await session.send(chunk)
            await session.end()

        sending = asyncio.create_task(send())
        with Display() as display:
            async for event in session:
                clock.receive(event)
                display.show(event)
        await sending
    assert session.ended
    return clock, session.ended


def _print_latencies(clock: Clock, ended: client.Event) -> None:
    stats = ended["stats"]
    spoken = ended["total_speech_duration"]
    table = Table(box=None, show_header=False)
    for name, values in (
        ("first partial after the onset of speech", clock.first_partial),
        ("final after the endpoint was decided", clock.final),
        ("final after the speech ended (0.5 s of it is the endpoint's silence)", clock.speech_end),
    ):
        if values:
            table.add_row(
                name, f"median {median(values) * 1000:.0f} ms", f"max {max(values) * 1000:.0f} ms"
            )
    table.add_row(
        "partials", str(stats["partials"]), f"{stats['partials'] / spoken:.1f} a second of speech"
    )
    changed = f"{stats['stable_words_changed']} of {stats['stable_words']}"
    table.add_row("stable words that a final changed", changed)
    console.print(table)


def main(choice: Choice, data_dir: Path | None, file: Path | None) -> int:
    """Show it; the exit status."""
    bundled = SAMPLES / json.loads((SAMPLES / "samples.json").read_text())[0]["file"]
    try:
        return asyncio.run(_demo(choice, data_dir, file or bundled))
    except (up.StackError, ModelError, SourceError, client.SessionFailed, OSError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
