"""
What the quality bench counts of what was heard live and offline.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import quality
import quality_tables
from corpus import Item
from quality_tables import Heard, Pair
from recordings import Sentence
from scoring import Word

SECOND = np.zeros(16_000, np.int16)


def pair(said: str | None, live: str, offline: str, part: str = "a", language: str = "en") -> Pair:
    item = Item("a file", part, language, SECOND, said)
    return Pair(item, Heard(live, window_seconds=4.0), Heard(offline, window_seconds=30.0))


def test_a_row_adds_up_what_its_files_have() -> None:
    pairs = [
        pair("turn on the light", "turn off the light", "turn on the light"),
        pair("what is the time", "what is the", "what is the"),
    ]
    row = quality_tables.row("a", "en", pairs)
    assert (row.items, row.words, row.live_errors, row.offline_errors) == (2, 8, 2, 1)
    assert row.difference == pytest.approx(1 / 8)
    assert row.interval[0] <= row.difference <= row.interval[1]
    assert (row.live_lost, row.offline_lost) == ((0, 1), (0, 1))
    assert (row.live_window_s, row.offline_window_s) == (8.0, 60.0)


def test_what_nobody_wrote_down_counts_no_words_but_what_is_written_twice() -> None:
    twice = "and so it goes on and so it goes on"
    row = quality_tables.row("a", "en", [pair(None, twice, "and so it goes on")])
    assert (row.words, row.live_twice, row.offline_twice) == (0, 1, 0)
    assert "| a | en | 1 | 0 |  |  |  | 1 | 0 |" in quality_tables.table([row])


def test_parts_have_rows_of_their_own_and_english_and_the_others_one_each() -> None:
    pairs = [
        pair("yes", "yes", "yes"),
        pair("ja", "ja", "ja", "b", "de"),
        pair("oui", "non", "oui", "b", "fr"),
    ]
    found = [(row.part, row.language, row.live_errors) for row in quality_tables.rows(pairs)]
    assert found == [
        ("a", "en", 0),
        ("b", "de", 0),
        ("b", "fr", 1),
        ("**all**", "en", 0),
        ("**all**", "others", 1),
    ]


def test_word_times_that_go_back_or_leave_the_audio_are_counted() -> None:
    item = Item("a file", "a", "en", SECOND, "turn on", (Sentence("turn on", 0.2, 0.8),))
    words = (Word("turn", 0.3, 0.6), Word("on", 0.5, 1.2))
    told = quality_tables.times(
        [Pair(item, Heard("turn on", words), Heard(""))], lambda pair: pair.live
    )
    assert (told["edges"], told["disordered"], told["beyond"]) == (2, 1, 1)
    assert told["median_ms"] == pytest.approx(250)


def test_what_was_heard_last_time_can_be_judged_again(tmp_path: Path) -> None:
    known, unknown = Item("a file", "a", "en", SECOND, "on"), Item("other", "a", "en", SECOND, "")
    heard = Heard("on", (Word("on", 0.2, 0.4),), 4.0)
    kept = tmp_path / "live.json"
    kept.write_text(json.dumps({quality.named(known): asdict(heard)}))
    assert quality.remembered([known, unknown], kept) == [(known, heard)]
