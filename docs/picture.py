"""
Draw docs/transcript.svg: a recording as `dalston stream` shows it, at the pace it came.

    make picture                      the human recording, by the models of profile cpu
    python docs/picture.py [FILE] [--url ws://127.0.0.1:8000]

Every line and every moment in the picture is from a run against the server at --url, or against one
that is started for it.
"""

import argparse
import asyncio
import time
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dalston import client
from dalston.cli import up
from dalston.cli.display import line
from dalston.cli.models import Choice
from dalston.cli.stream import file_audio

FOLDER = Path(__file__).resolve().parent
SAMPLE = FOLDER.parent / "demo" / "samples" / "human.wav"
WIDTH, LEFT, TOP, ROW, FONT = 760, 18, 52, 23, 14.5
COLUMNS, TIME = 82, 11  # letters of a row, and of the time that it begins with
STAYS_S = 4.0  # the last frame, before it begins again
STYLES = {"dim": "d", "bold": "b", "dim italic": "i"}


async def record(url: str, file: Path) -> list[tuple[float, Any]]:
    """Partials and finals, and when they came, in seconds since the first sound was sent."""
    form, chunks = await file_audio(file, fast=False)
    events: list[tuple[float, Any]] = []
    parameters: dict[str, Any] = {"sample_rate": form.sample_rate, "channels": form.channels}
    async with client.connect(url, **parameters) as session:
        began = time.monotonic()

        async def send() -> None:
            async for chunk in chunks:
                await session.send(chunk)
            await session.end()

        sending = asyncio.create_task(send())
        async for event in session:
            if event["type"].startswith("transcript."):
                events.append((time.monotonic() - began, event))
        await sending
    return events


def rows(event: Any) -> list[Text]:
    """A text and its time, broken between words as terminals do."""
    text = line(event)
    broken = text[TIME:].wrap(Console(), COLUMNS - TIME)
    return [text[:TIME] + broken[0], *(Text(" " * TIME) + row for row in broken[1:])]


def spans(text: Text) -> str:
    return "".join(
        f'<tspan class="{STYLES.get(str(part.style), "")}">{escape(part.plain)}</tspan>'
        for part in text.divide(sorted({edge for span in text.spans for edge in span[:2]}))
        if part.plain
        for part.style in [part.spans[0].style if part.spans else ""]
    )


def draw(events: list[tuple[float, Any]], command: str) -> str:
    lasts, lowest = events[-1][0] + STAYS_S, 0
    rules, texts, below = list[str](), list[str](), 0  # below so many rows of finals
    for index, (at, event) in enumerate(events):
        final = event["type"] == "transcript.final"
        until = lasts if final or index + 1 == len(events) else events[index + 1][0]
        a, b = 100 * at / lasts, 100 * until / lasts
        gone = "" if until == lasts else f"{b:.2f}%{{visibility:hidden}}"
        rules.append(
            f"@keyframes k{index}{{0%{{visibility:hidden}}{a:.2f}%{{visibility:visible}}{gone}}}"
            f"#l{index}{{animation:k{index} {lasts:.2f}s step-end infinite}}"
        )
        kind = "final" if final else "partial"
        broken = rows(event)
        texts.append(f'<g id="l{index}" class="{kind}">')
        for number, row in enumerate(broken, below + 2):
            texts.append(f'<text x="{LEFT}" y="{TOP + ROW * number}">{spans(row)}</text>')
        texts.append("</g>")
        below += len(broken) if final else 0
        lowest = max(lowest, below if final else below + len(broken))
    height = TOP + ROW * (lowest + 2)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">
<title>A recording being transcribed while it plays</title>
<style>
text{{font:{FONT}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
fill:#d8dee9;white-space:pre}}
.d{{fill:#6b7689}} .b{{font-weight:700;fill:#fff}} .i{{font-style:italic;fill:#8a94a6}}
.partial{{visibility:hidden}}
{"".join(rules)}
@media (prefers-reduced-motion:reduce){{g{{animation:none!important}}}}
</style>
<rect width="{WIDTH}" height="{height}" rx="9" fill="#10141c"/>
<circle cx="22" cy="20" r="6" fill="#e0605c"/><circle cx="42" cy="20" r="6" fill="#e0b04c"/>
<circle cx="62" cy="20" r="6" fill="#5cb860"/>
<text x="{LEFT}" y="{TOP + ROW / 2}"><tspan class="d">$ </tspan>{escape(command)}</text>
{chr(10).join(texts)}
</svg>
"""


async def record_here(choice: Choice, data_dir: Path, file: Path) -> list[tuple[float, Any]]:
    """The same against a stack that is started for it."""
    repository, run = up.prepare(choice, data_dir)
    listener = up.listen("127.0.0.1")
    port = listener.getsockname()[1]
    parts = up.parts(repository, run, listener, 1, 5.0)
    async with up.running(parts, f"http://127.0.0.1:{port}"):
        return await record(f"ws://127.0.0.1:{port}", file)


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--url", help="a server that runs; without it one is started")
    parser.add_argument("--profile", default="cpu", help="models of that one (cpu)")
    parser.add_argument("--data-dir", type=Path, default=FOLDER.parent / "build" / "cpu")
    args = parser.parse_args()
    if args.url:
        events = asyncio.run(record(args.url, args.file))
    else:
        events = asyncio.run(record_here(Choice(args.profile), args.data_dir, args.file))
    (FOLDER / "transcript.svg").write_text(draw(events, f"dalston stream {args.file.name}"))


if __name__ == "__main__":
    main()
