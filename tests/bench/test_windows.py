"""
Right-sized windows are proven by being as good as full ones, and by nothing else.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from windows import Result

from dalston.triton.models import Checkpoint

FULL = Result(30, 0.25, english=0.1, others=0.2, first=0.1, twice=1, again=0, encoder_s=3000)
RIGHT = Result(8, 2.0, english=0.102, others=0.21, first=0.13, twice=1, again=9, encoder_s=1500)


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"english": 0.09}, True),
        ({"english": 0.1031}, False),
        ({"others": 0.211}, False),
        ({"twice": 2}, False),
        ({"first": 0.9}, True),  # what is decoded again is not what is said
    ],
)
def test_windows_are_as_good_as_full_ones_or_not(change: dict[str, float], good: bool):
    assert replace(RIGHT, **change).as_good_as(FULL) == good


def test_what_is_printed_for_the_manifest_is_read_by_it():
    fields = RIGHT.manifest(Path("/some/corpus"), FULL)
    checkpoint = TypeAdapter(Checkpoint).validate_python({"id": "mine", **fields})
    assert (checkpoint.windows, checkpoint.shortest_window, checkpoint.margin) == (
        "right-sized",
        8,
        2.0,
    )
    assert "--corpus corpus: WER 10.2% (10.0% in full windows)" in checkpoint.proven
    assert "50% of the encoder's seconds" in checkpoint.proven
