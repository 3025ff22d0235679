"""
What quality.py has heard, as tables and as numbers: words wrong, said twice, lost, and out of
place.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scoring
from corpus import Item
from rich.console import Console
from scoring import Score, Word

console = Console(highlight=False, stderr=True, width=130)


@dataclass(frozen=True)
class Heard:
    """What was made of one item, live or offline."""

    text: str
    words: tuple[Word, ...] = ()  # where they were wanted
    window_seconds: float = 0.0  # that the encoder saw
    failure: str = ""
    unknown: bool = False  # the language, to this checkpoint


@dataclass(frozen=True)
class Pair:
    item: Item
    live: Heard
    offline: Heard

    def scores(self) -> tuple[Score, Score]:
        said, language = self.item.text, self.item.language
        return (
            scoring.score(said, self.live.text, language),
            scoring.score(said, self.offline.text, language),
        )


@dataclass(frozen=True)
class Row:
    """Of one part of the corpus, or of several."""

    part: str
    language: str
    items: int
    words: int
    live_errors: int
    offline_errors: int
    interval: tuple[float, float]  # of the difference
    live_twice: int  # items with something written twice
    offline_twice: int
    live_lost: tuple[int, int]  # first words, last words
    offline_lost: tuple[int, int]
    live_window_s: float
    offline_window_s: float

    @property
    def difference(self) -> float:
        return (self.live_errors - self.offline_errors) / max(1, self.words)


def row(part: str, language: str, pairs: Sequence[Pair]) -> Row:
    ours, theirs = zip(*(pair.scores() for pair in pairs), strict=True)
    told = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.words]
    errors = [a.errors for a, _ in told], [b.errors for _, b in told]
    return Row(
        part=part,
        language=language,
        items=len(pairs),
        words=sum(a.words for a, _ in told),
        live_errors=sum(errors[0]),
        offline_errors=sum(errors[1]),
        interval=scoring.interval(*errors, [a.words for a, _ in told]) if told else (0.0, 0.0),
        live_twice=sum(score.twice for score in ours),
        offline_twice=sum(score.twice for score in theirs),
        live_lost=(sum(s.first_lost for s in ours), sum(s.last_lost for s in ours)),
        offline_lost=(sum(s.first_lost for s in theirs), sum(s.last_lost for s in theirs)),
        live_window_s=sum(pair.live.window_seconds for pair in pairs),
        offline_window_s=sum(pair.offline.window_seconds for pair in pairs),
    )


def rows(pairs: Sequence[Pair]) -> list[Row]:
    """Of every part and language; then of all English, and of all others."""
    keys = dict.fromkeys((pair.item.part, pair.item.language) for pair in pairs)
    found = [
        row(*key, [pair for pair in pairs if (pair.item.part, pair.item.language) == key])
        for key in keys
    ]
    english = [pair for pair in pairs if pair.item.language == "en"]
    others = [pair for pair in pairs if pair.item.language != "en"]
    for language, some in (("en", english), ("others", others)):
        if some:
            found.append(row("**all**", language, some))
    return found


def table(found: Sequence[Row]) -> str:
    lines = [
        "| part | language | files | words | WER live | offline | difference (95 %) |"
        " said twice, live | offline | first, last word lost, live | offline | encoder s, live |"
        " offline |",
        "|---|---|" + "---:|" * 11,
    ]
    for r in found:
        wer, low_high = ["", "", ""], ""
        if r.words:
            low_high = f"{100 * r.interval[0]:+.1f} to {100 * r.interval[1]:+.1f}"
            wer = [
                f"{r.live_errors / r.words:.1%}",
                f"{r.offline_errors / r.words:.1%}",
                f"{100 * r.difference:+.1f} ({low_high})",
            ]
        share = f" ({r.live_window_s / r.offline_window_s:.0%})" if r.offline_window_s else ""
        lines.append(
            f"| {r.part} | {r.language} | {r.items} | {r.words} | {' | '.join(wer)} |"
            f" {r.live_twice} | {r.offline_twice} | {r.live_lost[0]}, {r.live_lost[1]} |"
            f" {r.offline_lost[0]}, {r.offline_lost[1]} | {r.live_window_s:.0f}{share} |"
            f" {r.offline_window_s:.0f} |"
        )
    return "\n".join(lines)


def times(pairs: Sequence[Pair], of: Callable[[Pair], Heard]) -> dict[str, Any]:
    """How far words stand from where they were spoken: milliseconds."""
    errors, disordered, beyond = list[float](), 0, 0
    for pair in pairs:
        heard = of(pair).words
        errors += scoring.time_errors(pair.item.timed, heard, pair.item.language)
        each = [at for word in heard for at in (word.start, word.end)]
        disordered += sum(later < earlier for earlier, later in zip(each, each[1:], strict=False))
        beyond += sum(at < 0 or at > pair.item.seconds for at in each)
    away = np.abs(errors) if errors else np.zeros(1)
    return {
        "edges": len(errors),
        "median_ms": round(1000 * float(np.median(away))),
        "p95_ms": round(1000 * float(np.percentile(away, 95))),
        "bias_ms": round(1000 * float(np.median(errors or [0.0]))),
        "disordered": disordered,
        "beyond": beyond,
    }


def times_table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| word times | edges | median error | p95 | bias | not in order | outside the audio |",
        "|---|" + "---:|" * 6,
    ]
    lines += [
        f"| {name} | {t['edges']} | {t['median_ms']} ms | {t['p95_ms']} ms | {t['bias_ms']:+} ms |"
        f" {t['disordered']} | {t['beyond']} |"
        for name, t in found.items()
    ]
    return "\n".join(lines)


def report(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Prints the tables; what they say, for the JSON line."""
    # What was put together for word times would count its words twice.
    heard = [pair for pair in pairs if not pair.live.failure]
    counted = [pair for pair in heard if pair.item.part != "together"]
    found = rows(counted)
    print(table(found) + "\n")
    timed = [pair for pair in heard if pair.item.timed]
    both = dict[str, dict[str, Any]]()
    if timed:
        both["live"] = times(timed, lambda pair: pair.live)
        both["offline"] = times(timed, lambda pair: pair.offline)
        print(times_table(both) + "\n")
    for pair in pairs:
        if pair.live.failure:
            console.print(f"{pair.item.name} failed, and does not count: {pair.live.failure}")
        elif pair.scores()[0].twice:
            console.print(f"{pair.item.name}, something twice: {pair.live.text}")
    return {
        "parts": [asdict(r) | {"difference": round(r.difference, 4)} for r in found],
        "word_times": both,
        "failures": len(pairs) - len(heard),
    }
