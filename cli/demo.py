"""
`dalston demo`: the stack on free ports, a recording streamed to it as it was spoken, the text as
it comes, how long things took, and how many words were wrong.
"""

import asyncio
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from dalston import client
from dalston.cli import lock, up
from dalston.cli.data import data_folder
from dalston.cli.display import Display
from dalston.cli.models import Choice
from dalston.cli.stream import SourceError, file_audio
from dalston.triton.adaptation.choose import distance
from dalston.triton.models import BUNDLED, ModelError

console = Console(highlight=False)
SAMPLES = BUNDLED / "samples"


@dataclass(frozen=True)
class Recording:
    """A file to play, and what is said in it, where that is known."""

    file: Path
    text: str | None = None


def bundled(choice: Choice) -> Recording:
    """The recording that suits what is served: human speech, but for the demo model, which knows
    a few hundred words, one that is made of these."""
    toy = choice.profile == "demo" and not choice.checkpoints
    samples = json.loads((SAMPLES / ("samples.json" if toy else "human.json")).read_text("utf-8"))
    return Recording(SAMPLES / samples[0]["file"], " ".join(samples[0]["sentences"]))


def words(text: str) -> list[str]:
    """Without case and punctuation, which people write as they like."""
    return re.findall(r"[\w']+", text.lower())


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


async def _demo(choice: Choice, data_dir: Path | None, recording: Recording) -> int:
    began = time.monotonic()
    repository, run = up.prepare(choice, data_dir)
    os.environ.pop("DALSTON_API_KEYS", None)  # who calls this stack is ourselves
    listener = up.listen("127.0.0.1")
    port = listener.getsockname()[1]
    stack = up.parts(repository, run, listener, 1, 5.0)
    async with up.running(stack, f"http://127.0.0.1:{port}"):
        took = time.monotonic() - began
        console.print(f"the stack is up after {took:.1f} s; {recording.file.name} plays")
        clock, ended = await _play(f"ws://127.0.0.1:{port}", recording.file)
        console.print(f"\n[bold]{ended['transcript']}[/bold]\n")
        _print_measurements(clock, ended, recording.text)
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


def _print_measurements(clock: Clock, ended: client.Event, said: str | None) -> None:
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
    if said:
        expected = words(said)
        errors = distance(expected, words(ended["transcript"]))
        rate = f"{errors / len(expected):.1%}"
        table.add_row("words that are wrong", f"{errors} of {len(expected)}", rate)
    console.print(table)


def main(choice: Choice, data_dir: Path | None, file: Path | None) -> int:
    """Show it; the exit status."""
    recording = Recording(file) if file else bundled(choice)
    try:
        with lock.only_user(data_folder(data_dir)):
            return asyncio.run(_demo(choice, data_dir, recording))
    except (
        up.StackError,
        lock.FolderInUse,
        ModelError,
        SourceError,
        client.SessionFailed,
        OSError,
    ) as error:
        console.print(f"[red]{error}[/red]")
        return 1
