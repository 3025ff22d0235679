"""
`dalston stream` against the stack: files, standard input, text and JSON.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import recordings
from support.stack import Stack

SAMPLES = Path(__file__).parents[2] / "demo" / "samples"


def stream(stack: Stack, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "dalston.cli.main", "stream", "--url", stack.url]
    return subprocess.run([*command, *arguments], input=given, capture_output=True, timeout=60)


def events(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# 000-46
def test_json_is_one_message_a_line_and_the_last_is_session_end(stack: Stack) -> None:
    lines = events(stream(stack, str(SAMPLES / "00.wav"), "--json", "--fast", "--words"))
    assert lines[0]["type"] == "session.begin"
    assert lines[-1]["type"] == "session.end"
    finals = [line for line in lines if line["type"] == "transcript.final"]
    assert all("words" in final for final in finals)


def test_text_is_for_people(stack: Stack) -> None:
    done = stream(stack, str(SAMPLES / "00.wav"), "--fast", "--language", "en")
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    transcript = events(
        stream(stack, str(SAMPLES / "00.wav"), "--fast", "--json", "--language", "en")
    )[-1]
    assert " ".join(" ".join(line.split()[1:]) for line in lines) == transcript["transcript"]


def test_raw_audio_comes_from_standard_input(stack: Stack) -> None:
    audio = recordings()[0].audio
    piped = events(stream(stack, "-", "--json", given=audio.tobytes()))
    filed = events(stream(stack, str(SAMPLES / "00.wav"), "--json", "--fast"))
    assert piped[-1]["transcript"] == filed[-1]["transcript"]


@pytest.mark.parametrize("name", ["stereo.flac", "slow.ogg", "fast.wav"])
def test_other_files_are_read_as_they_are(stack: Stack, tmp_path: Path, name: str) -> None:
    audio = recordings()[0].audio.astype(np.float32) / 32768
    rate = 16_000
    if name == "stereo.flac":
        audio = np.stack([audio, audio], 1)
    elif name == "fast.wav":
        audio, rate = np.repeat(audio, 3), 48_000
    soundfile.write(tmp_path / name, audio, rate)
    lines = events(stream(stack, str(tmp_path / name), "--json", "--fast", "--language", "en"))
    assert lines[-1]["total_duration"] == pytest.approx(
        len(recordings()[0].audio) / 16_000, abs=0.01
    )
    assert len(str(lines[-1]["transcript"]).split()) > 10


def test_what_is_asked_of_the_model_is_shown_when_the_session_begins(stack: Stack) -> None:
    asked = {
        "--languages": "en,de",
        "--language-detection": "utterance",
        "--task": "transcribe",
        "--prompt": "Set the light. " * 130 + "über",  # about as long as one may be
        "--keywords": ",".join(["temperature"] * 50),
    }
    flags = [text for pair in asked.items() for text in pair]
    lines = events(stream(stack, str(SAMPLES / "00.wav"), "--fast", "--json", *flags))
    config = lines[0]["config"]
    assert isinstance(config, dict)
    assert config["languages"] == ["en", "de"]
    assert config["keywords"] == ["temperature"] * 50
    assert (config["language_detection"], config["prompt"]) == ("utterance", asked["--prompt"])
    finals = [line for line in lines if line["type"] == "transcript.final"]
    assert {final["language"] for final in finals} <= {"en", "de"}
    (warning,) = [line for line in lines if line["type"] == "warning"]
    assert (warning["code"], "224" in str(warning["message"])) == ("prompt_cut", True)


def test_a_checkpoint_that_cannot_translate_says_so(stack: Stack) -> None:
    done = stream(stack, str(SAMPLES / "00.wav"), "--task", "translate")
    assert done.returncode == 1
    assert b"no model here can translate" in done.stderr


def test_a_server_that_refuses_is_quoted(stack: Stack) -> None:
    done = stream(stack, str(SAMPLES / "00.wav"), "--language", "tlh")
    assert done.returncode == 1
    assert b"language" in done.stderr
    assert b"Traceback" not in done.stderr
