"""
Downloads as people see them.
"""

import io

from rich.console import Console

from dalston.cli.downloads import Downloads


def shown(terminal: bool, *downloads: tuple[str, int, int]) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with Downloads(console, "building") as display:
        for what, done, total in downloads:
            display.show(what, done, total)
    return out.getvalue()


HALF_AND_WHOLE = [("base", 33_000_000, 66_000_000), ("base", 66_000_000, 66_000_000)]


def test_where_there_is_no_terminal_a_download_is_two_lines():
    lines = shown(False, *HALF_AND_WHOLE, HALF_AND_WHOLE[-1]).splitlines()
    assert lines[0] == "downloading base: 66.0 MB"
    assert lines[1].startswith("downloaded base: 66.0 MB in ")
    assert len(lines) == 2


def test_a_terminal_shows_how_many_bytes_there_are():
    text = shown(True, *HALF_AND_WHOLE[:1])
    assert "building" in text
    assert "33.0/66.0 MB" in text
    assert "downloaded" not in text


def test_several_downloads_are_shown_after_each_other():
    lines = shown(False, *HALF_AND_WHOLE, ("vad", 2_000_000, 2_000_000)).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "downloading base",
        "downloaded base",
        "downloading vad",
        "downloaded vad",
    ]
