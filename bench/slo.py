"""
The promise that streams are counted by: here and nowhere else, and printed with every result.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scoring
from callers import SCRIPTS, scripts
from served import Usage

FIRST_TEXT_P95_S = 1.5  # from the true onset of a sentence
FINAL_P95_S = 0.5  # from the endpoint's decision
LATE_P95_S = 0.05  # of the generator: above, the run measures the generator
TIMES_WITHIN_S = 0.04  # in which finals are the same as an undisturbed server's

PROMISE = (
    f"first text p95 < {FIRST_TEXT_P95_S:g} s after the onset, final p95 < {FINAL_P95_S:g} s after "
    "the endpoint, no final lost or doubled, finals as of one caller alone, stable text never "
    "changed between partials"
)


def percentile(values: Sequence[float], share: float) -> float | None:
    """None of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else None


@dataclass(frozen=True)
class Run:
    """So many callers, and what they cost."""

    streams: int
    seconds: float  # of a call
    calls: list[dict[str, Any]]  # as of callers.Call
    late: list[float]  # of the generator, seconds
    generator_core_percent: float
    elapsed_s: float
    usage: Usage  # of the stack, in this time
    idle_rss_mb: dict[str, float]
    corpus: Path | None = None  # whose utterances were said

    def values(self, name: str) -> list[float]:
        return [value for call in self.calls for value in call[name]]

    def total(self, name: str) -> int:
        return sum(call[name] for call in self.calls)

    def core_percent(self, *roles: str) -> float:
        """For each stream."""
        used = sum(self.usage.core_s[role] for role in roles)
        return 100 * used / self.elapsed_s / self.streams

    def rss_mb(self, *roles: str) -> float:
        """For each stream, above an idle stack."""
        return (
            sum(self.usage.rss_mb[role] - self.idle_rss_mb[role] for role in roles) / self.streams
        )

    @property
    def failures(self) -> list[str]:
        return [call["failure"] for call in self.calls if call["failure"]]

    @property
    def late_p95_s(self) -> float:
        return percentile(self.late, 0.95) or 0.0

    def speech_s(self) -> float:
        """What the callers said, all together."""
        said = [
            sum(sentence.end - sentence.start for sentence in script.sentences)
            for script in scripts(self.seconds, self.corpus)
        ]
        return sum(said[int(call["script"])] for call in self.calls)

    def word_error_rate(self) -> float:
        """Of all calls, against what was said."""
        every, pairs = scripts(self.seconds, self.corpus), list[tuple[str, str]]()
        for call in self.calls:
            number: int = call["script"]
            said = " ".join(sentence.text for sentence in every[number].sentences)
            pairs.append((said, " ".join(final["text"] for final in call["finals"])))
        return scoring.wer(pairs)


def different(call: dict[str, Any], alone: dict[str, Any]) -> int:
    """Finals that are not those of the same script played alone."""
    ours, theirs = call["finals"], alone["finals"]
    unlike = sum(
        (a["segment_id"], a["text"]) != (b["segment_id"], b["text"])
        or abs(a["start"] - b["start"]) > TIMES_WITHIN_S
        or abs(a["end"] - b["end"]) > TIMES_WITHIN_S
        for a, b in zip(ours, theirs, strict=False)
    )
    return unlike + abs(len(ours) - len(theirs))


def broken(run: Run, alone: Run) -> list[str]:
    """What of the promise was not kept, a sentence each."""
    said = list[str]()
    if run.late_p95_s > LATE_P95_S:
        said.append(f"the callers were {run.late_p95_s * 1000:.0f} ms late: the run is void")
    if run.failures:
        said.append(f"{len(run.failures)} calls failed: {run.failures[0]}")
    for name, what, limit in (
        ("first_text", "first text", FIRST_TEXT_P95_S),
        ("after_endpoint", "final after the endpoint", FINAL_P95_S),
    ):
        value = percentile(run.values(name), 0.95)
        if value is None or value >= limit:
            said.append(f"{what} p95 {'none' if value is None else f'{value * 1000:.0f} ms'}")
    for name, what in (
        ("lost", "finals lost"),
        ("doubled", "finals doubled"),
        ("stable_broken", "partials changed stable text"),
    ):
        if count := run.total(name):
            said.append(f"{count} {what}")
    by_script = {call["script"]: call for call in alone.calls}
    assert len(by_script) == SCRIPTS
    if count := sum(different(call, by_script[call["script"]]) for call in run.calls):
        said.append(f"{count} finals unlike those of one caller alone")
    return said


async def most_streams(kept: Callable[[int], Awaitable[bool]], first: int, limit: int) -> int:
    """The most, of `limit`, that keep a promise, to one part in ten; 0 if not even one does.

    Doubled from `first` until it breaks, then halved in.
    """
    most, streams = 0, first
    while streams <= limit and await kept(streams):
        most, streams = streams, 2 * streams
    fewest = min(streams, limit + 1)  # that break it
    while fewest - most > max(1, most // 10):
        streams = (most + fewest) // 2
        if await kept(streams):
            most = streams
        else:
            fewest = streams
    return most


def stages(stats: list[dict[str, Any]]) -> dict[str, float]:
    """Where the time of a final went, over all sessions."""
    finals = sum(s["finals"] for s in stats)
    return {
        name: round(sum(s["final_stages_ms"][name] * s["finals"] for s in stats) / finals, 2)
        for name in (stats[0]["final_stages_ms"] if stats else ())
    }


# What the latency budget gives the stages that a final passes in the server, in milliseconds; the
# rest of its 490 are for the network and for finding a worker.
BUDGET_MS = {"buffering": 100, "vad": 20, "asr": 250, "serialisation": 10}
_ASR = ("queue", "features", "encode", "decode", "align")


def budget(stage_ms: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What each of these stages took, beside what it may take."""
    took = dict(stage_ms) | {"asr": sum(stage_ms.get(name, 0.0) for name in _ASR)}
    return {
        name: {"may_ms": may, "took_ms": round(took.get(name, 0.0), 2)}
        for name, may in BUDGET_MS.items()
    }


def summary(run: Run, alone: Run) -> dict[str, Any]:
    """As it stands in the JSON line."""

    def spread(name: str) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for share in (50, 95, 99):
            value = percentile(run.values(name), share / 100)
            found[f"p{share}"] = None if value is None else round(value * 1000, 1)
        return found

    whisper, vad = run.usage.triton["whisper"], run.usage.triton["silero_vad"]
    stats = [call["stats"] for call in run.calls if call["stats"]]
    return {
        "streams": run.streams,
        "broken": broken(run, alone),
        "first_partial_ms": spread("first_text"),
        "partial_lag_ms": spread("partial_lag"),
        "final_after_endpoint_ms": spread("after_endpoint"),
        "final_after_speech_ms": spread("after_speech"),
        "lost_finals": run.total("lost"),
        "doubled_finals": run.total("doubled"),
        "finals": sum(len(call["finals"]) for call in run.calls),
        "changed_stable_words": run.total("stable_broken"),
        "stable_words_changed_by_finals": sum(s["stable_words_changed"] for s in stats),
        "stable_words": sum(s["stable_words"] for s in stats),
        "speculative_finals": {
            outcome: sum(s[f"speculative_finals_{outcome}"] for s in stats)
            for outcome in ("used", "dropped")
        },
        "unstable_partial_word_ratio": round(
            run.total("unstable_words") / max(1, run.total("words")), 4
        ),
        "rewritten_word_ratio": round(run.total("rewritten_words") / max(1, run.total("words")), 4),
        "wer": round(run.word_error_rate(), 4),
        "wer_single": round(alone.word_error_rate(), 4),
        "window_seconds": {
            kind: round(sum(s[f"{kind}_window_seconds"] for s in stats), 1)
            for kind in ("partial", "final")
        },
        # Of speech: two when nobody has to wait.
        "partials_per_second": round(run.total("partials") / max(1.0, run.speech_s()), 2),
        "final_stages_ms": (took := stages([s for s in stats if s["finals"]])),
        "budget": budget(took),
        "core_percent_per_stream": {
            role: round(run.core_percent(role), 2) for role in run.usage.core_s
        },
        "orchestration_core_percent_per_stream": round(run.core_percent("gateway", "worker"), 2),
        "orchestration_rss_mb_per_stream": round(run.rss_mb("gateway", "worker"), 2),
        "whisper_batch": round(whisper["requests"] / max(1, whisper["executions"]), 2),
        "whisper_queue_ms": round(whisper["queue_us"] / max(1, whisper["requests"]) / 1000, 1),
        "vad_batch": round(vad["requests"] / max(1, vad["executions"]), 2),
        "vad_queue_ms": round(vad["queue_us"] / max(1, vad["requests"]) / 1000, 1),
        "generator_core_percent": round(run.generator_core_percent, 1),
        "generator_late_p95_ms": round(run.late_p95_s * 1000, 1),
    }
