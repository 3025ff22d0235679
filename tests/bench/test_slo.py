"""
What the load benchmark counts as a broken promise.
"""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import slo
from callers import SCRIPTS, Call, Listener, Script, Sentence, scripts
from served import Usage

NOTHING = Usage({}, {}, {"whisper": {}, "silero_vad": {}})
FINAL = {"segment_id": "seg_0000", "text": "turn on the light", "start": 0.5, "end": 1.5}


def run(*calls: Call, late: float = 0.0) -> slo.Run:
    return slo.Run(len(calls), 10.0, [asdict(c) for c in calls], [late], 1.0, 10.0, NOTHING, {})


def kept(script: int = 0, **changes: Any) -> Call:
    call = Call(script, [dict(FINAL)], [0.7], [0.6], [0.001], [0.1], 3, 1, words=4)
    return replace(call, **changes)


ALONE = run(*(kept(script) for script in range(SCRIPTS)))


def test_a_run_that_keeps_the_promise_has_nothing_broken() -> None:
    assert slo.broken(run(kept(0), kept(1)), ALONE) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"first_text": [0.7, 1.6]}, "first text p95 1600 ms"),
        ({"after_endpoint": [0.51]}, "final after the endpoint p95 510 ms"),
        ({"after_endpoint": []}, "final after the endpoint p95 none"),
        ({"lost": 1}, "1 finals lost"),
        ({"doubled": 2}, "2 finals doubled"),
        ({"stable_broken": 1}, "1 partials changed stable text"),
        ({"failure": "no room"}, "1 calls failed: no room"),
        ({"finals": []}, "1 finals unlike those of one caller alone"),
        ({"finals": [FINAL | {"text": "turn on"}]}, "1 finals unlike those of one caller alone"),
        ({"finals": [FINAL | {"end": 1.6}]}, "1 finals unlike those of one caller alone"),
    ],
)
def test_each_clause_of_the_promise_can_be_broken(changes: dict[str, Any], sentence: str) -> None:
    assert slo.broken(run(kept(**changes)), ALONE) == [sentence]


def test_times_that_differ_by_a_frame_are_the_same() -> None:
    assert slo.broken(run(kept(finals=[FINAL | {"end": 1.52}])), ALONE) == []


def test_a_run_whose_callers_were_late_is_void() -> None:
    (said,) = slo.broken(run(kept(), late=0.2), ALONE)
    assert said == "the callers were 200 ms late: the run is void"


# 002-34
def test_the_stages_of_a_final_stand_beside_the_latency_budget() -> None:
    took = {"buffering": 80.0, "vad": 3.5, "queue": 20.0, "encode": 90.0, "decode": 50.25}
    assert slo.budget(took | {"serialisation": 0.1}) == {
        "buffering": {"may_ms": 100, "took_ms": 80.0},
        "vad": {"may_ms": 20, "took_ms": 3.5},
        "asr": {"may_ms": 250, "took_ms": 160.25},
        "serialisation": {"may_ms": 10, "took_ms": 0.1},
    }


def listened(*events: dict[str, Any]) -> Call:
    script = Script(b"", (Sentence("turn on", 0.5, 1.5), Sentence("the light", 3.0, 4.0)))
    call = Call(0, sentences=2)
    listener = Listener(call, script)
    for event in events:
        listener.hear(event)
    listener.count()
    return call


def partial(text: str, stable: int, segment: str = "seg_0000") -> dict[str, Any]:
    kind = "transcript.partial"
    at = {"start": 0.4, "end": 1.0}
    return {"type": kind, "segment_id": segment, "text": text, "stable_chars": stable, **at}


def final(text: str, start: float, end: float, segment: str = "seg_0000") -> dict[str, Any]:
    at = {"start": start, "end": end}
    return {"type": "transcript.final", "segment_id": segment, "text": text, **at}


def test_a_sentence_without_a_final_is_lost() -> None:
    call = listened(final("turn on", 0.4, 1.5))
    assert (call.lost, call.doubled, len(call.first_text)) == (1, 0, 1)


def test_a_final_told_twice_is_doubled() -> None:
    call = listened(final("turn on", 0.4, 1.5), final("turn on", 0.4, 1.5))
    assert call.doubled == 1


def test_words_that_were_shown_and_change_are_unstable() -> None:
    call = listened(
        partial("turn of", 0), partial("turn on the", 4), final("turn on a light", 0.4, 1.5)
    )
    assert call.unstable_words == 2  # of, the
    assert call.words == 4
    assert call.stable_broken == 0


def test_other_capitals_and_marks_are_no_other_words() -> None:
    call = listened(
        partial("Turn on.", 0), partial("turn on, the", 4), final("turn on, the light", 0.4, 1.5)
    )
    assert (call.unstable_words, call.rewritten_words) == (0, 2)


def test_what_was_shown_of_nothing_is_unstable() -> None:
    call = listened(
        partial("turn on", 0),
        partial("the", 0, "seg_0001"),
        {"type": "session.end", "stats": {}},
    )
    assert call.unstable_words == 3


def test_of_a_sentence_in_two_finals_the_last_ends_the_wait() -> None:
    call = listened(final("turn", 0.4, 0.9), final("on", 0.9, 1.6, "seg_0001"))
    assert (len(call.after_speech), call.lost) == (1, 1)


def test_a_partial_that_changes_stable_text_is_seen() -> None:
    call = listened(partial("turn on", 7), partial("turn off", 4))
    assert call.stable_broken == 1


def test_every_script_says_something_else_and_the_same_each_time() -> None:
    first, again = scripts(60.0), scripts(60.0)
    assert first == again
    texts = {json.dumps([s.text for s in script.sentences]) for script in first}
    assert len(texts) == SCRIPTS
    for script in first:
        seconds = len(script.audio) / 2 / 16_000
        assert seconds <= 60.0
        assert script.sentences[-1].end < seconds


@pytest.mark.parametrize("most", [0, 1, 2, 3, 5, 8, 19])
async def test_the_search_finds_the_most_streams(most: int) -> None:
    tried = list[int]()

    async def keeps(streams: int) -> bool:
        tried.append(streams)
        return streams <= most

    assert await slo.most_streams(keeps, 1, 512) == most
    assert len(tried) == len(set(tried))


async def test_the_search_ends_within_a_tenth() -> None:
    async def keeps(streams: int) -> bool:
        return streams <= 77

    assert 70 <= await slo.most_streams(keeps, 1, 512) <= 77


@pytest.mark.parametrize("most", [0, 1, 3, 5, 7, 10, 11])
async def test_the_search_tries_no_more_than_there_is_room_for(most: int) -> None:
    async def keeps(streams: int) -> bool:
        assert 1 <= streams <= 10
        return streams <= most

    assert await slo.most_streams(keeps, 4, 10) == min(most, 10)
