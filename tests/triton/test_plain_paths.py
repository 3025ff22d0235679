"""
Folders that Triton's Python backend could not use by their own names.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import single_triton

from dalston.triton.plain_paths import PlainPaths


def test_only_what_needs_a_link_gets_one_and_none_is_left(tmp_path: Path) -> None:
    paths = PlainPaths()
    plain, spaced = tmp_path / "plain-1.0", tmp_path / "with space"
    spaced.mkdir()
    (spaced / "file").write_text("found")
    assert paths.of(plain, "a") == plain
    assert paths.folder is None
    link = paths.of(spaced, "b")
    assert (link / "file").read_text() == "found"
    assert paths.of(spaced, "b") == link  # a server that is started again
    assert paths.folder
    assert oct(paths.folder.stat().st_mode & 0o777) == "0o700"
    folder = paths.folder
    paths.remove()
    assert not folder.exists()
    assert (spaced / "file").exists()
    paths.remove()


def test_triton_answers_in_a_folder_whose_name_has_a_space_and_a_foreign_letter(
    model_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, temporary = tmp_path / "mes données", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    shutil.copytree(model_repository / "silero_vad", folder / "models" / "silero_vad")
    # A virtual environment with such a name, that finds what is installed in ours.
    site = Path(next(path for path in sys.path if path.endswith("site-packages")))
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True
    )
    (own,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    (own / "ours.pth").write_text(f"import site; site.addsitedir({str(site)!r})\n")
    monkeypatch.setattr(sys, "executable", str(folder / "venv" / "bin" / "python"))
    with single_triton.running(folder / "models", folder / "run", 100):
        assert len(list(temporary.glob("dalston-*"))) == 1
    assert not list(temporary.glob("dalston-*"))
