"""
A transcript in the terminal while it grows: finals stay, the partial below them is rewritten.
"""

from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dalston.client import Event


def line(event: Event) -> Text:
    """A partial or a final. The stable part of a partial is bold, the rest may still change; an
    eager final is bold as a whole."""
    text, start = event["text"], (_time(event["start"]), "dim")
    if event["type"] == "transcript.final":
        return Text.assemble(start, text)
    if event["type"] == "transcript.eager":
        return Text.assemble(start, (text, "bold"))
    stable = event["stable_chars"]
    return Text.assemble(start, (text[:stable], "bold"), (text[stable:], "dim italic"))


class Display:
    """Show events as they come."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
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

    def refresh(self) -> None:
        """Draw now; otherwise it is drawn a few times a second."""
        self._live.refresh()

    def show(self, event: Event) -> None:
        match event["type"]:
            case "transcript.partial" | "transcript.eager":
                self._live.update(line(event))
            case "transcript.final":
                self._live.update("")
                self._console.print(line(event))
            case "session.begin":
                for warning in event["warnings"]:
                    self._console.print(Text(warning["message"], style="yellow"))
            case "connection.lost":
                sentence = "the connection was lost; what is said is kept"
                self._console.print(Text(sentence, style="yellow"))
            case "connection.resumed":
                self._console.print(Text("the connection is back", style="yellow"))
            case "warning" | "error" | "session.terminated":
                sentence = event.get("message") or event.get("recovery_hint", event["reason"])
                self._console.print(Text(sentence, style="yellow"))
            case _:
                pass


def _time(seconds: float) -> str:
    return f"{int(seconds // 60):3}:{seconds % 60:05.2f}  "
