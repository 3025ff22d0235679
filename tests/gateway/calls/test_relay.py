"""
Whatever dies and whenever: what the client is told is what an undisturbed session tells it. Real
sessions stand in for workers.
"""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scenes import Scene, scenes, told
from support.speech import Driver, Step, pcm, say, silence

from dalston.gateway.calls.memory import FRAME_COSTS
from dalston.gateway.calls.relay import Relay
from dalston.orchestrator.protocol.messages import (
    ConfigUpdated,
    Configure,
    Eager,
    End,
    Error,
    Final,
    Flush,
    MessageError,
    Partial,
    Ping,
    Pong,
    ServerMessage,
    SessionBegin,
    SessionConfig,
    SessionEnd,
    Snapshot,
    SpeechEnd,
    SpeechStart,
    Withdrawn,
    parse,
    parse_server,
    serialize,
)
from dalston.orchestrator.protocol.parameters import contradiction
from dalston.orchestrator.transcription.changes import configured

# Scenes of minutes, ten of them: a busy machine takes longer than two minutes for some.
pytestmark = pytest.mark.timeout(400)

# Bytes; all is said again after each loss, so small frames take long.
SIZES = st.lists(st.integers(3_000, 60_000), min_size=1, max_size=5)


class Line:
    """A client, a relay and a worker that can be lost, with what it had still to say."""

    def __init__(self, scene: Scene, seed: int, relay: Relay | None = None):
        self.scene = scene
        self.relay = relay or Relay("s", scene.config)
        self.chance = np.random.default_rng(seed)
        self.heard: list[ServerMessage] = []  # by the client
        self.saved: dict[str, str] = {}
        self.lost = 0
        self._connect()

    def _connect(self) -> None:
        stated = self.relay.stated()
        snapshot = stated if isinstance(stated, Snapshot) else None
        self.worker = Driver(self.scene.session(snapshot), late=self.chance)
        self._passed, self._next = 0, self.relay.start_again()
        self.listen(1)  # session.begin
        self.heard += map(parse_server, self.relay.missed())
        self.listen()

    def listen(self, most: int | None = None) -> None:
        """Pass on what the worker has said, `most` messages of it."""
        for message in self.worker.messages[self._passed :][:most]:
            self._passed += 1
            frame = self.relay.pass_on(serialize(message))
            self.saved |= self.relay.unsaved()
            if frame is not None:
                self.heard.append(parse_server(frame))

    def send(self, step: Step) -> None:
        frame = step if isinstance(step, bytes) else serialize(step)
        self.relay.hold(frame)
        self.worker.step(step)
        self.listen()

    def lose_worker(self) -> None:
        """And go on with another, which may be lost before it has caught up."""
        if self.relay.end:
            return
        self.lost += 1
        self._connect()
        number = self._next
        for ping in self.relay.unanswered_pings():
            self.worker.step(parse(ping))
        stop = self.chance.random() < 0.3
        while (frame := self.relay.frame(number)) is not None:
            number = max(number, self.relay.first_held) + 1
            self.worker.step(frame if isinstance(frame, bytes) else parse(frame))
            if stop and self.chance.random() < 0.1:
                self.listen(int(self.chance.integers(0, 3)))
                return self.lose_worker()
            self.listen()

    def moments(self, steps: int) -> set[int]:
        """Some steps behind which something is lost."""
        return set(self.chance.integers(0, steps, int(self.chance.integers(1, 6))).tolist())

    def finish(self) -> list[ServerMessage]:
        self.worker.answer(everything=True)
        self.listen()
        return self.heard


def undisturbed(scene: Scene) -> list[ServerMessage]:
    messages = Driver(scene.session()).run(scene.steps([3200]))
    return [m for m in told(messages) if not isinstance(m, Snapshot)]


def changes(scene: Scene) -> list[bool]:
    """Of each of its changes of settings, whether it does not contradict those before it."""
    config, accepted = scene.config, list[bool]()
    for part in scene.parts:
        if isinstance(part, Configure):
            changed = configured(config, part)
            accepted.append(not contradiction(changed))
            config = changed if accepted[-1] else config
    return accepted


def configs(messages: Sequence[object]) -> list[bool]:
    """Of each answer to such a change, whether it accepts it."""
    return [isinstance(m, ConfigUpdated) for m in messages if isinstance(m, ConfigUpdated | Error)]


@settings(max_examples=10)
@given(scene=scenes(), sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_workers_lost_at_any_moment_change_nothing_that_the_client_is_told(
    scene: Scene, sizes: list[int], seed: int
) -> None:
    line, steps = Line(scene, seed), scene.steps(sizes)
    moments = line.moments(len(steps))
    for number, step in enumerate(steps):
        line.send(step)
        if number in moments:
            # What the models say just before the end may get half the way.
            line.worker.answer()
            line.listen(int(line.chance.integers(0, 3)))
            line.lose_worker()
    assert told(line.finish()) == undisturbed(scene)
    assert configs(line.heard) == changes(scene)
    # Whoever loses a worker takes back what that one told eagerly.
    eager: str | None = None
    for message in line.heard:
        if isinstance(message, Eager | Withdrawn | Final):
            assert (eager is None) == isinstance(message, Eager) or isinstance(message, Final)
            assert eager in (None, message.segment_id)
            eager = message.segment_id if isinstance(message, Eager) else None
    assert eager is None


@settings(max_examples=10)
@given(scene=scenes(), seed=st.integers(0, 2**32 - 1))
def test_stable_text_stays_as_it_is_when_a_worker_is_lost(scene: Scene, seed: int) -> None:
    line, steps = Line(scene, seed), scene.steps([3200])
    moments = line.moments(len(steps))
    for number, step in enumerate(steps):
        line.send(step)
        if number in moments:
            line.lose_worker()
    stable: dict[str, str] = {}
    ended = set[str]()
    for message in line.finish():
        if isinstance(message, Final):
            ended.add(message.segment_id)
        if isinstance(message, Partial):
            assert message.segment_id not in ended
            now = message.text[: message.stable_chars]
            assert now.startswith(stable.get(message.segment_id, ""))
            stable[message.segment_id] = now


@settings(max_examples=10)
@given(scene=scenes(), sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_a_client_that_comes_back_gets_every_final_once(
    scene: Scene, sizes: list[int], seed: int
) -> None:
    steps = scene.steps(sizes)
    line, chance = Line(scene, seed), np.random.default_rng(seed)
    moments = line.moments(len(steps))
    finals: list[Final] = []
    ends: list[SessionEnd] = []

    def hear(messages: Sequence[ServerMessage]) -> None:
        finals.extend(m for m in messages if isinstance(m, Final))
        ends.extend(m for m in messages if isinstance(m, SessionEnd))

    at = 0
    while at < len(steps):
        line.send(steps[at])
        at += 1
        if at - 1 in moments:
            # The client did not hear the last of it; the gateway may not have saved the last.
            unheard = int(chance.integers(0, 3))
            hear(line.heard[: len(line.heard) - unheard])
            if ends:
                break
            last = max((int(final.segment_id[4:]) for final in finals), default=-1)
            saved = line.saved
            line = Line(scene, seed + at, Relay.resumed("s", saved, last))
            line.saved = saved | line.saved
            begin = line.heard[0]
            assert isinstance(begin, SessionBegin)
            assert begin.resumed_from == "s"
            assert begin.resume_offset_ms is not None
            if line.relay.end:
                break
            frame_bytes = scene.config.frame_bytes
            rate = scene.config.sample_rate
            offset = -int(-begin.resume_offset_ms * rate // 1000) * frame_bytes
            sent = 0
            for step in steps[:at]:
                if isinstance(step, bytes):
                    if sent + len(step) > offset:
                        line.send(step[max(0, offset - sent) :])
                    sent += len(step)
                elif sent >= offset:
                    line.send(step)
    if not ends:
        hear(line.finish())
    expected = undisturbed(scene)
    assert finals == [m for m in expected if isinstance(m, Final)]
    (end,) = told(list(ends))
    assert end == expected[-1]


@pytest.fixture
def line() -> Line:
    """In the middle of a word, its first partial told."""
    sound = np.concatenate([silence(0.5), say([1, 2, 3, 4, 5, 6])])
    line = Line(Scene(SessionConfig(language="en"), [pcm(sound)]), 0)
    for step in line.scene.steps([3200])[:-1]:
        line.send(step)
        line.worker.answer(everything=True)
        line.listen()
    assert any(isinstance(m, Partial) for m in line.heard)
    return line


def test_speech_that_has_begun_does_not_begin_again(line: Line) -> None:
    line.lose_worker()
    line.send(pcm(silence(1.0)))
    line.send(End())
    line.finish()
    assert sum(isinstance(m, SpeechStart) for m in line.heard) == 1
    assert sum(isinstance(m, SpeechEnd) for m in line.heard) == 1
    assert sum(isinstance(m, SessionBegin) for m in line.heard) == 1


def test_an_eager_final_is_withdrawn_with_its_worker_and_told_again_by_the_next() -> None:
    sound = np.concatenate([say([1, 2]), silence(0.4)])
    line = Line(Scene(SessionConfig(language="en", eager=True), [pcm(sound)]), 0)
    for step in line.scene.steps([3200])[:-1]:
        line.send(step)
        line.worker.answer(everything=True)
        line.listen()
    line.lose_worker()
    line.worker.answer(everything=True)
    line.listen()
    line.send(End())
    line.finish()
    kinds = [type(m) for m in line.heard if isinstance(m, Eager | Withdrawn | Final)]
    assert kinds == [Eager, Withdrawn, Eager, Final]


def test_a_ping_that_was_not_answered_is_asked_again(line: Line) -> None:
    line.relay.hold(serialize(Ping()))
    line.lose_worker()
    line.finish()
    assert sum(isinstance(m, Pong) for m in line.heard) == 1


def test_a_message_that_was_no_message_is_not_said_again(line: Line) -> None:
    line.relay.hold('{"type":"dance"}')
    line.worker.session.receive_invalid("not a message")
    line.worker.collect()
    line.listen()
    line.lose_worker()
    line.finish()
    assert sum(json.loads(serialize(m))["type"] == "error" for m in line.heard) == 1


def test_what_nobody_has_answered_is_said_again(line: Line) -> None:
    line.relay.hold('{"type":"dance"}')
    number = line.relay.start_again()
    held = list[str | bytes]()
    while (frame := line.relay.frame(number)) is not None:
        held.append(frame)
        number += 1
    assert held[-1] == '{"type":"dance"}'


def test_audio_is_held_from_the_last_snapshot_on_and_no_longer(line: Line) -> None:
    audio = len(pcm(np.concatenate([silence(0.5), say([1, 2, 3, 4, 5, 6])])))
    assert audio < line.relay.held_bytes < audio + 100 * FRAME_COSTS
    line.send(pcm(silence(20.0)))
    line.send(Flush())
    line.worker.answer(everything=True)
    line.listen()
    # What the next worker's VAD hears first, and what frames cost.
    assert line.relay.held_bytes < 4.1 * 32_000 + 100 * FRAME_COSTS


def held(relay: Relay) -> list[str | bytes]:
    """What is said again to another worker."""
    numbers = range(relay.first_held, relay.first_held + 100)
    return [frame for number in numbers if (frame := relay.frame(number)) is not None]


def config(prompt: str = "names", padding: int = 0) -> str:
    return json.dumps({"type": "config", "prompt": prompt, "padding": "x" * padding})


UPDATED = serialize(ConfigUpdated(config=SessionConfig()))


def test_messages_without_audio_are_counted_and_have_a_bound() -> None:
    relay = Relay("s", SessionConfig())
    sent = 0
    while not relay.wordy:
        relay.hold(config("p" * 15_000))
        sent += 15_000
        assert sent < relay.held_bytes < 2 * sent
    assert sent < 2 << 20


def test_what_is_no_part_of_a_message_is_not_held() -> None:
    relay = Relay("s", SessionConfig())
    relay.hold(config(padding=16_000))
    assert relay.held_bytes < 1_000


def test_a_text_that_is_no_message_is_held_no_longer_than_it_takes_to_refuse_it() -> None:
    relay = Relay("s", SessionConfig())
    relay.hold("\U0001f600" * 250_000)
    assert relay.held_bytes < 100_000
    (frame,) = held(relay)
    with pytest.raises(MessageError):
        parse(frame)


def test_equal_configs_in_a_row_are_one_once_they_are_answered() -> None:
    relay = Relay("s", SessionConfig())
    for padding in range(20):
        relay.hold(config(padding=padding))
        assert relay.pass_on(UPDATED) == UPDATED
    assert len(held(relay)) == 1
    assert relay.held_bytes < 1_000
    relay.start_again()
    assert relay.pass_on(UPDATED) is None  # the client knows


def test_configs_that_differ_or_have_audio_between_them_stay() -> None:
    relay = Relay("s", SessionConfig())
    for frame in (config("a"), config("b"), b"\0\0", config("b"), config("a")):
        relay.hold(frame)
        if isinstance(frame, str):
            relay.pass_on(UPDATED)
    assert [
        frame if isinstance(frame, bytes) else json.loads(frame)["prompt"] for frame in held(relay)
    ] == ["a", "b", b"\0\0", "b", "a"]


def test_a_config_that_nobody_has_answered_is_said_again_as_often_as_it_was_said() -> None:
    relay = Relay("s", SessionConfig())
    relay.hold(config())
    relay.pass_on(UPDATED)
    relay.hold(config())
    relay.start_again()
    assert [relay.pass_on(UPDATED), relay.pass_on(UPDATED)] == [None, UPDATED]


@pytest.mark.parametrize("frame", [b"", b"\0"])
def test_each_frame_counts_however_small(frame: bytes) -> None:
    relay = Relay("s", SessionConfig())
    for _ in range(1000):
        relay.hold(frame)
    assert relay.held_bytes >= 1000 * FRAME_COSTS
    while not relay.full:
        relay.hold(frame)
    assert relay.held_bytes < 8 << 20
