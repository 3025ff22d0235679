"""
Who may work in a data folder.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dalston.cli.lock import FolderInUse, only_user


def test_a_second_user_is_told_who_the_first_is(tmp_path: Path) -> None:
    with only_user(tmp_path):
        for _ in range(2):  # being refused leaves the first one's name there
            with pytest.raises(FolderInUse, match=f"{tmp_path} is used by process {os.getpid()}"):
                with only_user(tmp_path):
                    pass
    with only_user(tmp_path):
        pass


def test_a_user_that_is_killed_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, time\n"
        "from dalston.cli.lock import only_user\n"
        "with only_user(pathlib.Path(sys.argv[1])):\n"
        "    print('there', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    with pytest.raises(FolderInUse, match=f"process {process.pid}"), only_user(tmp_path):
        pass
    process.kill()
    process.communicate()
    with only_user(tmp_path):
        pass


@pytest.mark.parametrize("command", ["up", "demo", "models build"])
def test_no_command_touches_a_folder_that_another_works_in(tmp_path: Path, command: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "gateway.log").write_text("of the one that runs")
    port = ["--port", "0"] if command == "up" else []
    with only_user(tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "dalston.cli.main", *command.split(), *port]
            + ["--profile", "demo", "--data-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert f"is used by process {os.getpid()}: stop that, or give another --data-dir" in said
    assert (run / "gateway.log").read_text() == "of the one that runs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "run"]
