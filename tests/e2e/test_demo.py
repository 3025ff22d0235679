"""
`dalston demo`, as somebody sees it who tries it out.
"""

import os
import subprocess
import sys
from pathlib import Path

import soundfile
from recordings import recordings


def test_the_demo_shows_a_transcript_even_where_callers_need_keys(
    data_dir: Path, tmp_path: Path
) -> None:
    recording = tmp_path / "short.wav"
    soundfile.write(recording, recordings()[0].audio[: 4 * 16_000], 16_000)
    command = [sys.executable, "-m", "dalston.cli.main", "demo", "--data-dir", str(data_dir)]
    done = subprocess.run(
        [*command, str(recording)],
        env=os.environ | {"DALSTON_API_KEYS": "redis"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "final after the speech ended" in " ".join(done.stdout.split())
