"""
The package as it is published: a wheel built from the sdist, installed outside the checkout.
"""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as publishers do: sdist first, the wheel from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.timeout(300)
def test_the_wheel_holds_all_that_runs(wheel: Path) -> None:
    assert names(wheel) >= {
        "dalston/cli/main.py",
        "dalston/client/__init__.py",
        "dalston/client/py.typed",
        "dalston/demo/checkpoint/model.safetensors",
        "dalston/triton/adaptation/deltas/base.safetensors",
        "dalston/triton/adaptation/deltas/tiny.en.safetensors",
        "dalston/demo/samples/00.wav",
        "dalston/demo/samples/human.json",
        "dalston/demo/samples/human.wav",
        "dalston/gateway/app.py",
        "dalston/model_repository/silero_vad/config.pbtxt",
        "dalston/model_repository/whisper_accurate/1/model.py",
        "dalston/orchestrator/capacity/lua/acquire.lua",
        "dalston/triton/models.toml",
        "dalston/triton/whisper.py",
    }


@pytest.mark.timeout(300)
def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    strange = [
        name
        for name in names(wheel)
        if not name.startswith(("dalston/", "dalston-")) or "/recipe/" in name or "test" in name
    ]
    assert strange == []
    # OpenAI's triton must stay importable beside ours.
    assert "dalston/triton/__init__.py" not in names(wheel)


@pytest.mark.timeout(300)
def test_the_sdist_holds_no_links_that_lead_nowhere(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert [member.name for member in archive if member.issym()] == []


@pytest.mark.timeout(300)
def test_installed_alone_it_explains_itself(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    install = [str(home / "bin" / "pip"), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, cwd=tmp_path, timeout=120)
    for arguments in (["--help"], ["--version"], ["up", "--help"]):
        done = subprocess.run(
            [str(home / "bin" / "dalston"), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "dalston" in done.stdout
    # Without the extras a command says what to install instead of how it failed.
    done = subprocess.run(
        [str(home / "bin" / "dalston"), "up"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "pip install 'dalston[local]'" in done.stderr


@pytest.mark.timeout(300)
def test_outside_the_checkout_it_builds_its_models(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True, timeout=120)
    program = (
        "import dalston.triton.models as m, sys; from dalston.cli.main import main;"
        f"assert m.__file__.startswith({str(target)!r}), m.__file__; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "models", "build"]
        + ["--profile", "demo", "--data-dir", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    built = tmp_path / "data" / "model_repository"
    assert (built / "whisper_fast" / "1" / "checkpoint" / "model.bin").exists()


def test_only_linux_and_two_pythons_are_claimed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.11,<3.13"' in text
    assert "Operating System :: POSIX :: Linux" in text
