from collections.abc import Callable

import pytest

from dalston.orchestrator.inference.fleet import ran_out_of_memory
from dalston.orchestrator.worker.memory_limit import ONE_SHORTAGE_S, QUIET_S, MemoryLimit


@pytest.fixture
def passes() -> Callable[[float], float]:
    """A clock: it goes on by what it is called with, and tells the time."""
    now = 1000.0

    def clock(seconds: float = 0.0) -> float:
        nonlocal now
        now += seconds
        return now

    return clock


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Triton: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0)", True),
        ("Triton: CUDA failed with error out of memory", True),
        ("Triton: cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED", True),
        ("BFCArena: Failed to allocate memory for requested buffer of size 8", True),
        ("Triton: Stub process 'whisper_fast_0_0' is not healthy.", False),
        ("Triton: this model does not know the language 'tlh'", False),
    ],
)
def test_the_words_of_runtimes_for_it_are_known(sentence: str, expected: bool):
    assert ran_out_of_memory(sentence) is expected


# 002-32
def test_a_quarter_of_what_was_too_much_is_given_up(passes: Callable[[float], float]):
    memory = MemoryLimit(16, lambda: passes(0))
    assert memory.sessions == 16
    assert memory.ran_out(active=12)
    assert memory.sessions == 9


def test_a_batch_that_fails_is_one_shortage(passes: Callable[[float], float]):
    memory = MemoryLimit(16, lambda: passes(0))
    told = [memory.ran_out(active=16) for _ in range(8)]
    assert told == [True] + 7 * [False]
    assert memory.sessions == 12
    passes(ONE_SHORTAGE_S)
    assert memory.ran_out(active=16)
    assert memory.sessions == 9


def test_one_session_is_always_served(passes: Callable[[float], float]):
    memory = MemoryLimit(4, lambda: passes(0))
    for _ in range(5):
        memory.ran_out(active=1)
        passes(ONE_SHORTAGE_S)
    assert memory.sessions == 1


def test_it_comes_back_step_by_step_and_no_further_than_configured(
    passes: Callable[[float], float],
):
    memory = MemoryLimit(16, lambda: passes(0))
    memory.ran_out(active=8)
    seen = [memory.sessions]
    for _ in range(7):
        passes(QUIET_S)
        seen.append(memory.sessions)
    assert seen == [6, 8, 10, 12, 14, 16, 16, 16]


def test_quiet_is_counted_from_the_last_shortage(passes: Callable[[float], float]):
    memory = MemoryLimit(16, lambda: passes(0))
    memory.ran_out(active=16)
    passes(ONE_SHORTAGE_S / 2)
    memory.ran_out(active=16)
    passes(QUIET_S - 1)
    assert memory.sessions == 12
    passes(1)
    assert memory.sessions == 14
