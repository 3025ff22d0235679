"""
The command line as people type it.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dalston.cli import options
from dalston.orchestrator.worker.settings import WorkerSettings

COMMANDS = [
    "up",
    "demo",
    "stream",
    "models",
    "models build",
    "models list",
    "keys",
    "keys add",
    "keys list",
    "keys revoke",
    "keys token",
    "keys rotate",
    "gateway",
    "worker",
    "triton",
]


def dalston(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("REDIS", "WORKER", "DALSTON"))
    }
    return subprocess.run(
        [sys.executable, "-m", "dalston.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | environment,
    )


def test_help_lists_every_command() -> None:
    done = dalston("--help")
    assert done.returncode == 0
    assert {command.split()[0] for command in COMMANDS} <= set(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = dalston(*command.split(), "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 4


def test_the_worker_help_names_every_variable_that_is_read() -> None:
    shown = dalston("worker", "--help").stdout
    aliases = {field.alias for field in WorkerSettings.model_fields.values()}
    assert all(alias and alias in shown for alias in aliases)


def test_the_gateway_help_names_every_variable_that_is_read() -> None:
    from dalston.gateway.settings import GatewaySettings

    shown = dalston("gateway", "--help").stdout
    aliases = {field.alias for field in GatewaySettings.model_fields.values()}
    assert all(alias and alias in shown for alias in aliases)


# 001-24, 001-26
def test_a_worker_without_settings_names_all_that_are_missing() -> None:
    done = dalston("worker")
    assert done.returncode == 2
    assert "REDIS_URL" in done.stderr
    assert "WORKER_ID" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_SESSIONS", "0"),
        ("WORKER_PORT", "port"),
        ("WORKER_ENDPOINT", "http://here"),
        ("DALSTON_VAD", "gpu"),
        ("LOG_LEVEL", "LOUD"),
        ("DALSTON_LOG_FORMAT", "xml"),
        ("DALSTON_WORKER_SECRET", ""),
    ],
)
def test_a_setting_that_is_wrong_is_named(name: str, value: str) -> None:
    done = dalston("worker", REDIS_URL="redis://x", WORKER_ID="w", **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: ")


def test_a_gateway_without_redis_url_says_so() -> None:
    done = dalston("gateway")
    assert (done.returncode, done.stderr.splitlines()) == (2, ["REDIS_URL: Field required"])


def test_a_gateway_without_the_file_of_its_keys_says_so() -> None:
    done = dalston("gateway", REDIS_URL="redis://x", DALSTON_API_KEYS="/nowhere/keys")
    assert done.returncode == 2
    assert done.stderr.startswith("DALSTON_API_KEYS: /nowhere/keys cannot be read")


def test_triton_without_a_repository_says_what_to_do(tmp_path: Path) -> None:
    assert dalston("triton").returncode == 2
    done = dalston("triton", "--repository", str(tmp_path), "--run-dir", str(tmp_path))
    assert done.returncode == 1
    assert "dalston models build" in done.stderr


def test_probing_where_no_triton_is_fails() -> None:
    done = dalston("triton", "--probe", "--grpc-port", "1")
    assert done.returncode == 1
    assert "no Triton at 127.0.0.1:1" in done.stderr


def test_models_list_shows_profiles_and_where_they_come_from() -> None:
    shown = dalston("models", "list").stdout
    for word in ("demo", "cpu", "gpu", "fast", "accurate", "large-v3-turbo", "comes with dalston"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ([], {}, "no other source may be asked"),
        (["--source", "mirror"], {}, "it has no mirror"),
        ([], {"DALSTON_MODEL_SOURCE": "mirror"}, "it has no mirror"),
        (["--source", "cache"], {"DALSTON_MODEL_SOURCE": "mirror"}, "no other source may be asked"),
    ],
)
def test_the_source_of_models_is_an_option_or_else_a_variable(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], sentence: str
) -> None:
    given = {"DALSTON_MODEL_SOURCE": "cache", "HF_HOME": str(tmp_path)} | environment
    command = ["models", "build", "--profile", "cpu-small", "--out", str(tmp_path / "out")]
    done = dalston(*command, *arguments, **given)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_streaming_to_nobody_says_so(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "demo" / "samples" / "00.wav"
    done = dalston("stream", str(sample), "--url", "ws://127.0.0.1:1")
    assert done.returncode == 1
    assert "no server at ws://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["missing.wav", "text.wav"])
def test_a_file_that_is_no_audio_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.wav").write_text("hello")
    done = dalston("stream", str(tmp_path / name))
    assert done.returncode == 1
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_a_microphone_that_is_missing_says_what_to_install() -> None:
    done = dalston("stream", "mic")
    assert done.returncode == 1
    assert "dalston[microphone]" in done.stderr or "no microphone" in done.stderr


def test_an_unknown_command_is_refused() -> None:
    done = dalston("transcribe")
    assert done.returncode == 2
    assert "invalid choice" in done.stderr


def test_no_part_of_the_stack_needs_the_current_directory(tmp_path: Path) -> None:
    """A folder of ours named triton must not shadow the package of that name, nor the reverse."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise SystemExit('shadowed')")
    done = subprocess.run(
        [sys.executable, "-m", "dalston.cli.main", "models", "list"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "inf", "nan"])
def test_models_are_not_unloaded_after_what_is_no_time(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DALSTON_UNLOAD_AFTER_SECONDS", value)
    with pytest.raises(SystemExit):
        options.parser().parse_args(["triton", "--probe"])
    assert f"{value!r} is no number of seconds above 0" in capsys.readouterr().err


def test_the_environment_says_after_how_long_models_are_unloaded(monkeypatch: pytest.MonkeyPatch):
    def after(*words: str) -> float | None:
        return options.parser().parse_args(["triton", *words]).unload_after

    monkeypatch.delenv("DALSTON_UNLOAD_AFTER_SECONDS", raising=False)
    assert after() is None
    monkeypatch.setenv("DALSTON_UNLOAD_AFTER_SECONDS", "90")
    assert after() == 90.0
    assert after("--unload-after", "5") == 5.0


def test_the_port_for_wyoming_is_checked_as_the_setting_is() -> None:
    done = dalston("gateway", "--wyoming", "home", REDIS_URL="redis://x")
    assert done.returncode == 2
    assert done.stderr.startswith("DALSTON_WYOMING_PORT: ")


def test_a_port_for_wyoming_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = {"REDIS_URL": "redis://127.0.0.1:1", "DALSTON_PORT": "0"}
        done = dalston("gateway", "--wyoming", port, **environment)
    assert done.returncode == 1
    assert f"DALSTON_WYOMING_PORT: 127.0.0.1:{port}" in done.stderr + done.stdout
