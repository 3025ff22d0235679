"""
A growing transcript on a terminal.
"""

import io
from typing import Any

from rich.console import Console

from dalston.cli.display import Display


def partial(text: str, stable: int) -> dict[str, Any]:
    return {"type": "transcript.partial", "text": text, "stable_chars": stable, "start": 61.5}


def shown(*events: dict[str, Any], terminal: bool = True) -> str:
    colours = "standard" if terminal else None
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=60, highlight=False, color_system=colours
    )
    with Display(console) as display:
        for event in events:
            display.show(event)
            display.refresh()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_final_stays_with_its_time() -> None:
    final = {"type": "transcript.final", "text": "turn on the light", "start": 61.5}
    text = shown(final, terminal=False)
    assert text.splitlines()[0].split() == ["1:01.50", "turn", "on", "the", "light"]


def test_an_eager_final_is_bold_and_does_not_stay() -> None:
    eager = {"type": "transcript.eager", "text": "turn on the light", "start": 61.5}
    assert "\x1b[1mturn on the light\x1b[0m" in shown(eager)
    assert "turn on" not in shown(eager, terminal=False)


def test_the_stable_part_of_a_partial_is_bold_and_the_rest_is_not() -> None:
    text = shown(partial("turn on the li", 11))
    bold = text.index("\x1b[1m")
    assert text[bold:].startswith("\x1b[1mturn on the\x1b[0m")
    assert "\x1b[2;3m li" in text


def test_a_partial_is_rewritten_in_place() -> None:
    text = shown(partial("turn", 0), partial("turn on", 4))
    assert "\x1b[2K" in text  # the line is erased


def test_without_a_terminal_only_what_stays_is_printed() -> None:
    text = shown(
        partial("turn", 0),
        {"type": "transcript.final", "text": "turn on", "start": 0.0},
        terminal=False,
    )
    assert "turn on" in text
    assert text.count("turn") == 1


def test_a_connection_that_is_lost_and_back_is_shown() -> None:
    text = shown(
        {"type": "connection.lost", "code": 1006, "reason": ""},
        {"type": "connection.resumed", "attempts": 1},
        terminal=False,
    )
    assert text.splitlines()[:2] == [
        "the connection was lost; what is said is kept",
        "the connection is back",
    ]


def test_warnings_and_errors_are_shown() -> None:
    text = shown(
        {"type": "session.begin", "warnings": [{"code": "x", "message": "no such parameter"}]},
        {"type": "error", "code": "invalid_audio", "message": "no numbers"},
        {"type": "session.terminated", "reason": "worker_lost", "recovery_hint": "connect again"},
        terminal=False,
    )
    assert text.split("\n")[:3] == ["no such parameter", "no numbers", "connect again"]
