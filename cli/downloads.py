"""
Downloads as people see them: a bar with bytes on a terminal, a line for each elsewhere.
"""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)


class Downloads:
    """The downloads of one step of work, shown while it lasts. `show` may be called by any thread.

    console: where; what it prints meanwhile stands above the bars
    step: what is being done
    """

    def __init__(self, console: Console, step: str) -> None:
        self._console, self._status = console, console.status(step)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            transient=True,
        )
        self._tasks = dict[str, TaskID]()
        self._began = dict[str, float]()

    def __enter__(self) -> "Downloads":
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars.live.is_started:
            self._bars.stop()
        self._status.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `what` are here."""
        if what not in self._tasks:
            if self._console.is_terminal:
                self._status.stop()  # it shows one of them at a time
                self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=total)
            self._began[what] = time.monotonic()
            if not self._console.is_terminal:
                self._console.print(f"downloading {what}: {_megabytes(total)}")
        bar = self._bars.tasks[self._tasks[what]]
        if bar.completed == done == total:
            return  # told already
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done == total:
            took = time.monotonic() - self._began[what]
            self._console.print(f"downloaded {what}: {_megabytes(total)} in {took:.1f} s")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
