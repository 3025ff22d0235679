"""
Every config.pbtxt says what contract.py says.
"""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from dalston.triton import contract
from dalston.triton.contract import (
    LONGEST_AUDIO,
    MARGIN,
    SAMPLE_RATE,
    WINDOWS,
    Tensor,
    window_seconds,
)

SOURCE = Path(__file__).parents[2] / "model_repository"
WHISPERS = [contract.whisper_model(variant) for variant in contract.VARIANTS]
MODELS = [contract.VAD_MODEL, contract.TURN_MODEL, *WHISPERS]


def parsed(path: Path) -> Any:
    return text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())


def config_of(model: str) -> Any:
    return parsed(SOURCE / model / "config.pbtxt")


def tensors(entries: Any) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            entry.name,
            model_config_pb2.DataType.Name(entry.data_type).removeprefix("TYPE_"),
            tuple(entry.dims),
        )
        for entry in entries
    )


def test_the_repository_holds_the_models_of_the_contract_and_no_other():
    assert sorted(path.parent.name for path in SOURCE.glob("*/config.pbtxt")) == sorted(MODELS)
    assert sorted(path.parts[-3] for path in SOURCE.glob("*/1/model.py")) == sorted(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_inputs_and_outputs_are_those_of_the_contract(model: str):
    config = config_of(model)
    inputs, outputs = {
        contract.VAD_MODEL: (contract.VAD_INPUTS, contract.VAD_OUTPUTS),
        contract.TURN_MODEL: (contract.TURN_INPUTS, contract.TURN_OUTPUTS),
    }.get(model, (contract.WHISPER_INPUTS, contract.WHISPER_OUTPUTS))
    assert config.name == model
    assert config.backend == "python"
    assert tensors(config.input) == inputs
    assert tensors(config.output) == outputs


@pytest.mark.parametrize("model", MODELS)
def test_inputs_of_any_length_are_ragged_so_that_all_lengths_share_batches(model: str):
    config = config_of(model)
    assert config.max_batch_size > 1
    ragged = {entry.name for entry in config.input if entry.allow_ragged_batch}
    assert ragged == {entry.name for entry in config.input if -1 in entry.dims}


# K-02
@pytest.mark.parametrize("model", WHISPERS)
def test_nothing_keeps_triton_from_handing_requests_to_a_busy_instance(model: str):
    config = config_of(model)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds > 0
    # Any of these, and a request behind a busy instance may wait for half a second.
    assert not batching.priority_levels
    assert not batching.HasField("default_queue_policy")
    assert not batching.priority_queue_policy


# K-04
def test_the_vad_keeps_state_by_correlation_id_without_what_this_server_breaks():
    config = config_of(contract.VAD_MODEL)
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    batching = config.sequence_batching
    assert batching.WhichOneof("strategy_choice") == "oldest"
    kinds = {control.kind for entry in batching.control_input for control in entry.control}
    control = model_config_pb2.ModelSequenceBatching.Control
    assert kinds == {control.CONTROL_SEQUENCE_START, control.CONTROL_SEQUENCE_READY}
    assert not batching.state
    assert batching.max_sequence_idle_microseconds >= 60_000_000
    # One instance: the state of a sequence is in one process.
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, config.instance_group[0].KIND_CPU)
    ]


def test_turns_are_judged_one_by_one_by_a_single_process():
    config = config_of(contract.TURN_MODEL)
    # A batch would keep its first row waiting.
    assert config.WhichOneof("scheduling_choice") is None
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, config.instance_group[0].KIND_CPU)
    ]


def test_both_whispers_run_the_same_code():
    code = {(SOURCE / model / "1" / "model.py").resolve() for model in WHISPERS}
    assert len(code) == 1


@pytest.mark.parametrize("model", MODELS)
def test_the_built_copy_keeps_the_tensors_and_the_batching(model: str, turns_repository: Path):
    source, built = config_of(model), parsed(turns_repository / model / "config.pbtxt")
    for config in (source, built):  # what is set for machine and profile
        config.ClearField("instance_group")
        config.ClearField("parameters")
        if config.HasField("dynamic_batching"):
            config.dynamic_batching.ClearField("max_queue_delay_microseconds")
    assert built == source


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "window"),
    [
        (0, 4),
        (3.75, 4),
        (3.76, 6),
        (5.75, 6),
        (7.75, 8),
        (11, 12),
        (15.8, 24),
        (29.75, 30),
        (30, 30),  # no room for the margin, and none is needed
    ],
)
def test_a_window_is_the_smallest_with_a_margin_behind_the_audio(seconds: float, window: int):
    assert window_seconds(round(seconds * SAMPLE_RATE)) == window


@given(st.integers(0, LONGEST_AUDIO))
def test_no_window_that_would_do_is_smaller(samples: int):
    window = window_seconds(samples)
    needed = samples / SAMPLE_RATE + MARGIN
    assert window >= min(needed, WINDOWS[-1])
    assert all(smaller < needed for smaller in WINDOWS if smaller < window)


def test_audio_longer_than_the_longest_window_is_refused():
    with pytest.raises(ValueError, match=r"30\.00 s of audio do not fit"):
        window_seconds(LONGEST_AUDIO + 1)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mels", [80, 128])
def test_no_window_can_be_mistaken_for_features_that_are_not_encoded_yet(window: int, mels: int):
    # CTranslate2 tells encoder output [batch, frames, width] from features [batch, mels, frames]
    # by its second dimension.
    assert window * 100 // 2 != mels


# --- languages -----------------------------------------------------------------------------------


def test_languages_are_whispers_hundred_and_spaceless_ones_are_among_them():
    assert len(contract.LANGUAGES) == len(set(contract.LANGUAGES)) == 100
    assert set(contract.LANGUAGES) >= contract.SPACELESS
