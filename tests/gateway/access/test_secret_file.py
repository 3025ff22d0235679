"""
A file of secrets: how it is written, and what happens when it is broken.
"""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from dalston.gateway.access.secret_file import KeysError, SecretFile


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def test_what_was_written_is_on_the_disk_before_it_replaces_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "secrets", list[str]()
    path.write_text("1")
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("folder" if name == tmp_path else name.read_text())
        fsync(descriptor)

    def noted_replace(source: Any, target: Any) -> None:
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    SecretFile(path, numbers).replace(b"2 3")
    assert done == ["2 3", "replace", "folder"]
    assert path.read_text() == "2 3"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secrets"
    path.write_text("1")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeysError, match="cannot be written"):
        SecretFile(path, numbers).replace(b"2")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("secrets", "1")]


def test_a_new_file_is_for_its_owner_alone_or_for_whom_its_neighbour_is(tmp_path: Path) -> None:
    path, neighbour = tmp_path / "secrets", tmp_path / "neighbour"
    SecretFile(path, numbers).replace(b"1", like=neighbour)
    assert path.stat().st_mode & 0o777 == 0o600
    neighbour.touch()
    neighbour.chmod(0o640)
    other = SecretFile(tmp_path / "other", numbers)
    other.replace(b"1", like=neighbour)
    assert other.path.stat().st_mode & 0o777 == 0o640


def test_it_is_read_again_when_it_changes_and_not_before(tmp_path: Path) -> None:
    path, asked = tmp_path / "secrets", list[str]()

    def parse(text: str) -> list[int]:
        asked.append(text)
        return numbers(text)

    file = SecretFile(path, parse)
    for text in ("1", "oops", "1 2"):
        file.replace(text.encode())
        for _ in range(3):
            if text == "oops":
                with pytest.raises(KeysError, match=f"^{path}, invalid literal"):
                    file.read()
            else:
                assert file.read() == numbers(text)
    assert asked == ["1", "oops", "1 2"]
    path.unlink()
    with pytest.raises(KeysError, match="cannot be read"):
        file.read()


def test_a_file_that_others_may_read_is_warned_of_once_for_each_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secrets"
    file = SecretFile(path, numbers)
    file.replace(b"1")
    file.read()
    assert "open to others" not in caplog.text
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            file.read()
    assert caplog.text.count("is open to others (mode 644)") == 1
    assert "chmod 600" in caplog.text
