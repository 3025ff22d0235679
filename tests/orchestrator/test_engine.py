"""
engine.yaml says what the code does.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema import ValidationError, validate

from dalston.orchestrator.protocol.messages import PROTOCOL_VERSION, SessionConfig
from dalston.orchestrator.worker.settings import WorkerSettings
from dalston.triton.contract import VARIANTS

ENGINE: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "orchestrator" / "engine.yaml").read_text("utf-8")
)


# 001-45, 001-46
def test_its_name_and_needs_are_the_documented_ones() -> None:
    assert ENGINE["id"] == "whisper-streaming"
    assert ENGINE["type"] == "realtime"
    assert ENGINE["name"] == "Whisper Streaming"
    assert ENGINE["description"]
    assert ENGINE["container"] == {"gpu": "required", "memory": "16G"}


# 001-45
def test_its_version_is_that_of_the_protocol() -> None:
    assert ENGINE["version"] == f"{PROTOCOL_VERSION}.0"


# 001-47, C-15
def test_its_capabilities_are_those_of_a_worker_as_it_comes() -> None:
    capabilities = ENGINE["capabilities"]
    assert set(capabilities["models"]) == set(VARIANTS)
    assert capabilities["languages"] == ["all"]
    assert capabilities["max_sessions"] == WorkerSettings.model_fields["max_sessions"].default
    assert capabilities["streaming"] is True
    assert capabilities["word_timestamps"] is True


def test_its_settings_are_those_of_a_session() -> None:
    whole = msgspec.json.decode(msgspec.json.encode(msgspec.json.schema(SessionConfig)))
    schema = whole["$defs"]["SessionConfig"]["properties"]
    del schema["model_id"]  # told to the client, not set by it
    del schema["recorded"]  # said by gateways, of files
    described = ENGINE["config_schema"]["properties"]
    assert described.keys() == schema.keys()
    for name, expected in schema.items():
        actual = described[name]
        if "enum" in expected:  # msgspec sorts them, and does not say that they are strings
            expected = {"type": "string", **expected}
            actual = {**actual, "enum": sorted(actual["enum"])}
        assert actual == expected, name


# 001-48
def test_its_schema_takes_what_a_session_takes() -> None:
    schema = ENGINE["config_schema"]
    validate(msgspec.json.decode(msgspec.json.encode(SessionConfig())), schema)
    for wrong in ({"model": "huge"}, {"sample_rate": 4000}):
        with pytest.raises(ValidationError):
            validate(wrong, schema)


# 001-48
def test_every_setting_has_a_type() -> None:
    properties = ENGINE["config_schema"]["properties"]
    assert [name for name, schema in properties.items() if "type" not in schema] == []
    assert properties["model"] == {
        "type": "string",
        "enum": ["fast", "accurate"],
        "default": "fast",
    }


# 001-48
@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("model", "fast"),
        ("language", "auto"),
        ("interim_results", True),
        ("word_timestamps", False),
        ("enable_vad", True),
    ],
)
def test_its_defaults_are_the_documented_ones(name: str, default: object) -> None:
    assert ENGINE["config_schema"]["properties"][name]["default"] == default
