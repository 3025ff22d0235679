"""
What a gateway holds of all callers: who holds most gives way, and nobody else notices.
"""

from dataclasses import dataclass, field

from dalston.gateway.calls.memory import NO_LEVEL, PATIENCE_S, HeldMemory, level


@dataclass(eq=False)
class Held:
    held_bytes: int
    in_line: bool = False
    ended: list[str] = field(default_factory=list[str])

    def go_on(self) -> None: ...

    def end_for(self, sentence: str) -> None:
        self.ended.append(sentence)


def test_below_the_limit_nobody_is_slowed() -> None:
    memory = HeldMemory(100, 100)
    assert memory.look([Held(50), Held(50)], 0.0) is None
    assert memory.level == memory.level_in_line == NO_LEVEL


def test_above_it_only_the_largest_are() -> None:
    assert level([10, 20, 200], 100) == 70
    assert level([10, 100, 200], 100) == 45
    assert level([60, 60], 100) == 50
    assert level([], 0) == NO_LEVEL


def test_if_that_does_not_help_the_largest_is_ended_and_told_why() -> None:
    memory, small, large = HeldMemory(100, 100), Held(20), Held(90)
    assert memory.look([small, large], 0.0) is None
    assert memory.look([small, large], PATIENCE_S - 0.1) is None
    assert memory.look([small, large], PATIENCE_S) is large
    assert not small.ended
    (sentence,) = large.ended
    assert "holds 110 bytes" in sentence
    assert "100 at most" in sentence
    assert memory.look([small], PATIENCE_S + 1) is None
    assert memory.level == NO_LEVEL


def test_one_after_the_other_as_long_as_it_is_too_much() -> None:
    memory, holders = HeldMemory(100, 100), [Held(90), Held(80)]
    memory.look(holders, 0.0)
    assert memory.look(holders, 6.0) is holders[0]
    assert memory.look(holders, 7.0) is None
    assert memory.look(holders, 12.0) is not None


def test_who_is_in_line_has_a_limit_of_all_in_line_besides() -> None:
    memory = HeldMemory(1000, 100)
    waiting = [Held(80, in_line=True), Held(80, in_line=True)]
    memory.look([Held(500), *waiting], 0.0)
    assert memory.level == NO_LEVEL
    assert memory.level_in_line == 50
