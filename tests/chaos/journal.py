"""
What a run has seen so far, in a file: so that one that was interrupted goes on and nothing is
counted twice.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass
class Journal:
    path: Path
    entries: list[Entry] = field(default_factory=list[Entry])

    @classmethod
    def open(cls, path: Path) -> "Journal":
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = cls(path)
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    journal.entries.append(json.loads(line))
                except ValueError:
                    break  # half a line, of the moment of an interruption
            whole = "".join(json.dumps(entry) + "\n" for entry in journal.entries)
            path.write_text(whole)
        return journal

    def add(self, what: str, **fields: Any) -> None:
        entry = {"what": what} | fields
        self.entries.append(entry)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def of(self, what: str) -> list[Entry]:
        return [entry for entry in self.entries if entry["what"] == what]

    @property
    def faults(self) -> int:
        return len(self.of("fault"))

    def broken(self) -> list[str]:
        """Every invariant that did not hold, in words."""
        found = [
            f"{call['reading']}: {sentence}"
            for call in self.of("call")
            for sentence in [*call["differences"], *call["broken"]]
        ]
        return found + [entry["sentence"] for entry in self.of("broken")]

    def report(self, seed: int) -> Entry:
        faults, calls, broken = self.of("fault"), self.of("call"), self.of("broken")
        kinds, mid = Counter[str](), Counter[str]()
        for fault in faults:
            kinds[fault["kind"]] += 1
            mid[fault["kind"]] += bool(fault["mid_utterance"])
        times: dict[str, dict[bool, list[float]]] = {}
        for sample in self.of("recovery"):
            clean = times.setdefault(sample["kind"], {True: [], False: []})
            clean[bool(sample["clean"])].append(1000 * sample["seconds"])
        of = Counter(entry["invariant"] for entry in broken)
        resumed = sum(call["resumed"] for call in calls)
        warnings = Counter[str]()
        for call in calls:
            warnings.update(call["warnings"])
        return {
            "faults": len(faults),
            "faults_mid_utterance": sum(mid.values()),
            "by_kind": {
                kind: {"count": count, "mid_utterance": mid[kind]}
                for kind, count in sorted(kinds.items())
            },
            "calls": len(calls),
            "finals": sum(call["finals"] for call in calls),
            "resumed": resumed,
            "refused": sum(call["refused"] for call in calls),
            "warnings": dict(warnings),
            "transcript_differences": sum(bool(call["differences"]) for call in calls),
            "promises_broken": sum(bool(call["broken"]) for call in calls),
            # Redis had lost what they would have gone on from.
            "unresumable": sum(bool(call["excused"]) for call in calls),
            "set_back": sum(bool(call["set_back"]) for call in calls),
            "excluded": self._excluded(),
            "leaked_slots": of["slots"],
            "hung_sessions": sum(call["hung"] for call in calls),
            "unhandled_exceptions": of["logs"],
            "over_quota": sum(call["over_quota"] for call in calls),
            "intrusions": self._intrusions(),
            "let_in": of["access"],
            "busy_loops": of["processor"],
            "leaks": of["connections"] + of["descriptors"] + of["leftovers"],
            "not_ready": of["ready"],
            "recovery_ms": _recovery(times, True),
            "recovery_overlapping_ms": _recovery(times, False),  # other faults came between
            "seed": seed,
        }

    def _intrusions(self) -> Entry:
        outcomes: dict[str, Counter[str]] = {}
        for attempt in self.of("intrusion"):
            outcomes.setdefault(attempt["kind"], Counter())[attempt["outcome"]] += 1
        return {kind: dict(of) for kind, of in sorted(outcomes.items())}

    def _excluded(self) -> Entry:
        references = self.of("references")
        names = sorted({name for entry in references for name in entry["excluded"]})
        count = references[-1]["readings"] if references else 0
        return {"readings": names, "percent": round(100 * len(names) / max(count, 1), 1)}


def _recovery(times: dict[str, dict[bool, list[float]]], clean: bool) -> Entry:
    return {kind: _times(of[clean]) for kind, of in sorted(times.items()) if of[clean]}


def _times(values: list[float]) -> Entry:
    return {
        "count": len(values),
        "p50": round(percentile(values, 0.5)),
        "p95": round(percentile(values, 0.95)),
        "most": round(max(values)),
    }
