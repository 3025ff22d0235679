"""
What a worker makes of its environment.
"""

import socket

import pytest

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
