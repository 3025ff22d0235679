"""
A transcript in the terminal while it grows: finals stay, the partial below them is rewritten.
"""

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dalston.client import Event


class Display:
    """Show events as they come. The stable part of a partial is bold, the rest may still change."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, transient=True, refresh_per_second=20)

    def __enter__(self) -> "Display":
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def show(self, event: Event) -> None:
        match event["type"]:
            case "transcript.partial":
                text, stable = event["text"], event["stable_chars"]
                line = Text(_time(event["start"]), style="dim")
                line.append(text[:stable], style="not dim bold")
                line.append(text[stable:], style="not dim italic")
                self._live.update(line)
            case "transcript.final":
                self._live.update("")
                line = Text(_time(event["start"]), style="dim")
                line.append(event["text"], style="not dim")
                self._console.print(line)
            case "session.begin":
                for warning in event["warnings"]:
                    self._console.print(Text(warning["message"], style="yellow"))
            case "warning" | "error" | "session.terminated":
                sentence = event.get("message") or event.get("recovery_hint", event["reason"])
                self._console.print(Text(sentence, style="yellow"))
            case _:
                pass


def _time(seconds: float) -> str:
    return f"{int(seconds // 60):3}:{seconds % 60:05.2f}  "
