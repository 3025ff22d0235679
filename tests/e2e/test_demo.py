"""
`dalston demo`, as somebody sees it who tries it out.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from recordings import recordings


def test_the_demo_shows_a_transcript_even_where_callers_need_keys(
    data_dir: Path, tmp_path: Path
) -> None:
    recording = tmp_path / "short.wav"
    soundfile.write(recording, recordings()[0].audio[: 4 * 16_000], 16_000)
    command = [sys.executable, "-m", "dalston.cli.main", "demo", "--data-dir", str(data_dir)]
    command += ["--profile", "demo"]
    done = subprocess.run(
        [*command, str(recording)],
        env=os.environ | {"DALSTON_API_KEYS": "redis"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "final after the speech ended" in " ".join(done.stdout.split())


def test_the_demo_hears_people_and_says_how_many_words_were_wrong() -> None:
    data_dir = Path(__file__).parents[2] / "build" / "cpu"
    if not (data_dir / "model_repository" / "built.json").exists():
        pytest.fail(f"{data_dir} is not there: run `make test`, or `make install`")
    command = [sys.executable, "-m", "dalston.cli.main", "demo", "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = " ".join(done.stdout.split())
    assert "human.wav plays" in shown
    wrong = re.search(r"words that are wrong (\d+) of (\d+) ", shown)
    assert wrong, shown
    assert int(wrong[1]) <= 0.1 * int(wrong[2])
