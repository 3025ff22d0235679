"""
The wire: every example of docs/protocol.md is what the code says, and nothing else is taken.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalston.orchestrator.protocol.messages import (
    LONGEST_TEXT,
    ClientMessage,
    Configure,
    Error,
    MessageError,
    ServerMessage,
    parse,
    parse_server,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ALLOWED

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"


def examples(kind: str) -> list[str]:
    blocks = re.findall(rf"```json {kind}\n(.*?)```", PROTOCOL.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


# 000-38, 000-39, 001-41
@pytest.mark.parametrize("line", examples("client"))
def test_client_examples_are_understood_as_they_are(line: str) -> None:
    assert json.loads(serialize(parse(line))) == json.loads(line)


# 000-40, 000-41, 000-42, 000-43, 000-44, 000-45, 001-15, 001-35, 001-40, 001-44
@pytest.mark.parametrize("line", examples("server"))
def test_server_examples_are_what_the_server_writes(line: str) -> None:
    assert json.loads(serialize(parse_server(line))) == json.loads(line)


def test_every_message_has_an_example() -> None:
    tags = {json.loads(line)["type"] for line in examples("client") + examples("server")}
    messages: tuple[Any, ...] = (*ClientMessage.__args__, *ServerMessage.__args__)
    declared = {message.__struct_config__.tag for message in messages}
    assert declared == tags


def test_every_parameter_is_documented() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", PROTOCOL.read_text(), re.MULTILINE))
    assert set(ALLOWED) <= documented


def test_unknown_fields_are_ignored() -> None:
    assert parse('{"type":"config","language":"es","speed":2}') == Configure(language="es")


def test_the_order_of_fields_does_not_matter() -> None:
    assert parse('{"language":"es","type":"config"}') == Configure(language="es")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "{",
        "[]",
        "null",
        "42",
        '"end"',
        "{}",
        '{"type":"stop"}',
        '{"type":null}',
        '{"type":["end"]}',
        '{"type":"config","language":5}',
        '{"type":"config","vad_threshold":2}',
        '{"type":"config","vad_threshold":"high"}',
        '{"type":"config","min_silence_duration_ms":-1}',
        '{"type":"end"}{"type":"end"}',
        '{"type":"end","x":' + "[" * 5_000 + "]" * 5_000 + "}",
        '{"type":"end","x":"' + "a" * LONGEST_TEXT + '"}',
        '{"type":"session.begin"}',
        "\ud800",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_no_message_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(MessageError, match=r"\w+ \w+ \w+"):
        parse(text)


def test_a_message_of_the_longest_size_is_taken() -> None:
    text = '{"type":"config","language":"es","x":"%s"}'
    assert parse(text % ("a" * (LONGEST_TEXT - len(text % "")))) == Configure(language="es")


@pytest.mark.parametrize(
    "text",
    ['{"type":"%s"}', '{"type":"config","%s":1,"language":1}', '{"type":"end"}%s', '{"%s":1}'],
)
def test_a_refusal_repeats_little_of_what_it_refuses(text: str) -> None:
    with pytest.raises(MessageError) as refused:
        parse(text % ("long " * 3_000))
    assert len(str(refused.value)) < 300


@given(st.text() | st.from_regex(r'\{"type":"\w{0,8}"(,"\w+":[0-9a-z"\[\]{}]*){0,3}\}'))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    with contextlib.suppress(MessageError):
        assert serialize(parse(text))


def test_unset_fields_are_omitted_never_null() -> None:
    line = serialize(Error(code="internal_error", message="x", recoverable=False))
    assert json.loads(line) == {
        "type": "error",
        "code": "internal_error",
        "message": "x",
        "recoverable": False,
    }
