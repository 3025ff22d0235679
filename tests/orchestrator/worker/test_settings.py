"""
What a worker makes of its environment.
"""

import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from dalston.orchestrator.worker.settings import WorkerSettings


def settings(**given: str) -> WorkerSettings:
    return WorkerSettings.model_validate({"REDIS_URL": "redis://r:6379", "WORKER_ID": "a", **given})


# C-11
@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", "ws://127.0.0.1:9000"),
        ("localhost", "ws://localhost:9000"),
        ("::1", "ws://[::1]:9000"),
        ("0.0.0.0", f"ws://{socket.gethostname()}:9000"),
    ],
)
def test_a_worker_is_registered_where_it_can_be_reached(host: str, endpoint: str) -> None:
    assert settings(DALSTON_HOST=host).advertised(9000) == endpoint


def test_what_is_said_of_its_endpoint_goes_first() -> None:
    assert settings(WORKER_ENDPOINT="wss://there:1").advertised(9000) == "wss://there:1"


# 000-25, 001-25
def test_without_a_word_it_takes_four_sessions_and_beats_every_ten_seconds() -> None:
    usual = settings()
    assert (usual.max_sessions, usual.heartbeat_seconds) == (4, 10.0)


def test_what_is_redacted_is_known_or_a_pattern_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="DALSTON_REDACT: 'customer' is neither"):
        settings(DALSTON_REDACT="numbers, customer")
    with pytest.raises(ValidationError, match="cannot be read"):
        settings(DALSTON_REDACT_PATTERNS=str(tmp_path / "patterns"))
    (tmp_path / "patterns").write_text("customer (a")
    with pytest.raises(ValidationError, match="line 1: missing"):
        settings(DALSTON_REDACT_PATTERNS=str(tmp_path / "patterns"))
    (tmp_path / "patterns").write_text("customer AB-[0-9]+")
    read = settings(
        DALSTON_REDACT="numbers, customer", DALSTON_REDACT_PATTERNS=str(tmp_path / "patterns")
    )
    assert read.redact == ["numbers", "customer"]
    assert settings(DALSTON_REDACT="").redact == []


def test_the_password_of_redis_goes_into_its_url_if_none_is_there() -> None:
    assert settings(REDIS_PASSWORD="a/b").redis_url == "redis://:a%2Fb@r:6379"
    named = {"REDIS_URL": "redis://me:mine@x", "REDIS_PASSWORD": "ab"}
    assert settings(**named).redis_url == "redis://me:mine@x"


@pytest.mark.parametrize("share", ["0", "1.5", "-1"])
def test_a_session_takes_a_part_of_a_slot_or_all_of_it(share: str) -> None:
    assert settings().fast_share == 1
    assert settings(DALSTON_FAST_SHARE="0.25").fast_share == 0.25
    with pytest.raises(ValueError, match="DALSTON_FAST_SHARE"):
        settings(DALSTON_FAST_SHARE=share)
