"""
Several Tritons as one. The servers are small, the sockets real.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from instant import Asked, Refused, Tensor, serving
from support import waiting
from support.small_triton import SmallTriton, Wire, end, final, more, partial, start

from dalston.orchestrator.inference import fleet, health_channel
from dalston.orchestrator.inference.fleet import Fleet
from dalston.orchestrator.inference.triton_client import (
    InferenceError,
    LoadedVariant,
    SequenceLost,
    speech_probabilities,
)
from dalston.orchestrator.transcription.model_requests import EndOfTurnRequest
from dalston.triton.contract import TURN_MODEL
from dalston.triton.process import free_port

AWAY = (503, "Server is stopping")
BROKEN = (500, "index 7 is out of bounds")
NO_MEMORY = (500, "CUDA failed with error out of memory")
TEXT = "and that is what it is"


@asynccontextmanager
async def fleet_of(*tritons: SmallTriton) -> AsyncGenerator[Fleet]:
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(serving(triton)) for triton in tritons]
        fleet = Fleet([f"127.0.0.1:{port}" for port in ports])
        stack.push_async_callback(fleet.close)
        await fleet.variants()
        yield fleet


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed in half a second."""
    monkeypatch.setattr(health_channel, "ASK_AFTER_S", 0.1)
    monkeypatch.setattr(health_channel, "LIVE_DEADLINE_S", 0.2)
    monkeypatch.setattr(health_channel, "PROBE_AFTER_S", 0.3)
    monkeypatch.setattr(health_channel, "LOST_S", 0.3)


until = functools.partial(waiting.until, within_s=10)


TURN = EndOfTurnRequest(1, bytes(6400))


class NoJudge(SmallTriton):
    """Without the model that judges turns."""

    async def ready(self, model: str) -> None:
        if model == TURN_MODEL:
            raise Refused(400, "no such model")


class SlowWithLong(SmallTriton):
    """Takes so many seconds for long audio."""

    def __init__(self, seconds: float):
        super().__init__()
        self._seconds = seconds

    async def infer(self, asked: Asked) -> dict[str, Tensor]:
        if len(asked.inputs["AUDIO"]) > 6400:
            await asyncio.sleep(self._seconds)
        return await super().infer(asked)


# --- who is asked ---------------------------------------------------------------------------------


async def test_transcripts_go_to_the_server_with_the_fewest_under_way():
    slow, fast = SmallTriton(), SmallTriton()
    async with fleet_of(slow, fast) as fleet:
        slow.answering.clear()
        waiting = asyncio.create_task(fleet.transcribe(final()))
        await until(lambda: slow.transcripts == 1)
        for _ in range(5):
            assert (await fleet.transcribe(final())).text == TEXT
        assert (slow.transcripts, fast.transcripts) == (1, 5)
        fast.answering.clear()
        more = [asyncio.create_task(fleet.transcribe(final())) for _ in range(5)]
        await until(lambda: slow.transcripts + fast.transcripts == 11)
        assert (slow.transcripts, fast.transcripts) == (3, 8)
        slow.answering.set()
        fast.answering.set()
        await asyncio.gather(waiting, *more)


async def test_a_sequence_stays_where_it_was_started_and_the_next_is_started_elsewhere():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        for sequence in ("a", "b"):
            assert len(await speech_probabilities(fleet.request_speech, start(sequence))) == 1
        for sequence in ("a", "b", "b", "a"):
            await speech_probabilities(fleet.request_speech, more(sequence))
        await speech_probabilities(fleet.request_speech, end("b"))
        await speech_probabilities(fleet.request_speech, start("c"))
    assert one.sequences == [("a", "start"), ("a", ""), ("a", "")]
    assert other.sequences == [("b", "start"), ("b", ""), ("b", ""), ("b", "end"), ("c", "start")]


async def test_a_lost_sequence_cannot_go_on_and_the_next_starts_on_a_server_that_works():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        await speech_probabilities(fleet.request_speech, start("a"))
        one.failure = AWAY
        with pytest.raises(SequenceLost, match="is stopping"):
            await speech_probabilities(fleet.request_speech, more("a"))
        with pytest.raises(SequenceLost, match="was not started"):
            await speech_probabilities(fleet.request_speech, more("a"))
        for sequence in ("a2", "b", "c"):
            await speech_probabilities(fleet.request_speech, start(sequence))
    assert [sequence for sequence, _ in other.sequences] == ["a2", "b", "c"]


async def test_a_sequence_that_was_forgotten_is_no_reason_to_avoid_the_server():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        await speech_probabilities(fleet.request_speech, start("a"))
        one.failures = [(404, "no state for the sequence 'a'")]
        with pytest.raises(SequenceLost, match="no state"):
            await speech_probabilities(fleet.request_speech, more("a"))
        await speech_probabilities(fleet.request_speech, start("a2"))
    assert one.sequences[-1] == ("a2", "start")


# --- who is asked next ----------------------------------------------------------------------------


async def test_a_final_that_fails_is_asked_of_another():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        one.failures = [AWAY]
        assert (await fleet.transcribe(final())).text == TEXT
    assert (one.transcripts, other.transcripts) == (1, 1)


async def test_a_server_that_fails_is_avoided_until_it_answers_a_probe():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        one.failure = AWAY
        for _ in range(4):
            await fleet.transcribe(final())
        assert (one.transcripts, other.transcripts) == (1, 4)
        one.failure = None
        await asyncio.sleep(1.2)
        other.answering.clear()
        waiting = asyncio.create_task(fleet.transcribe(final()))
        assert (await fleet.transcribe(final())).text == TEXT
        other.answering.set()
        await waiting
    assert one.transcripts >= 2


async def test_turns_are_judged_by_those_who_have_the_model():
    async with fleet_of(NoJudge(), SmallTriton(), NoJudge()) as fleet:
        assert fleet.judges_turns
        assert await fleet.end_of_turn(TURN) == 1.0
    async with fleet_of(NoJudge()) as fleet:
        assert not fleet.judges_turns
        with pytest.raises(InferenceError, match="no Triton has end_of_turn"):
            await fleet.end_of_turn(TURN)


async def test_a_turn_is_asked_once_and_whoever_failed_is_avoided_until_it_answers():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        one.failure = AWAY
        with pytest.raises(InferenceError, match="Server is stopping"):
            await fleet.end_of_turn(TURN)
        assert await fleet.end_of_turn(TURN) == 1.0
        other.failure = AWAY
        with pytest.raises(InferenceError, match="Server is stopping"):
            await fleet.end_of_turn(TURN)
        began = time.monotonic()
        with pytest.raises(InferenceError, match="that answers"):
            await fleet.end_of_turn(TURN)
        assert time.monotonic() - began < 0.5  # a session stands still meanwhile
        one.failure = None
        await asyncio.sleep(1.2)
        assert await fleet.end_of_turn(TURN) == 1.0


async def test_a_dead_server_is_done_without_and_found_when_it_is_back():
    one, other, port = SmallTriton(), SmallTriton(), free_port()
    async with serving(other) as there:
        fleet = Fleet([f"127.0.0.1:{port}", f"127.0.0.1:{there}"])
        async with serving(one, port):
            await fleet.variants()
            await fleet.transcribe(final())
        for _ in range(4):
            assert (await fleet.transcribe(final())).text == TEXT
        assert set(await fleet.variants()) == {"fast", "accurate"}
        async with serving(one, port):
            asked = one.transcripts
            async with asyncio.timeout(5):
                while one.transcripts == asked:
                    await fleet.transcribe(final())
                    await asyncio.sleep(0.05)
        await fleet.close()


async def test_a_partial_that_fails_is_not_asked_again_and_the_next_goes_elsewhere():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        one.failure = AWAY
        with pytest.raises(InferenceError, match="is stopping"):
            await fleet.transcribe(partial())
        assert (await fleet.transcribe(partial())).text == TEXT
    assert (one.transcripts, other.transcripts) == (1, 1)


async def test_what_can_never_succeed_is_asked_once():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        one.failures = [(400, "31.00 s of audio, 30 s at most")]
        with pytest.raises(InferenceError, match="31.00 s") as failed:
            await fleet.transcribe(final())
    assert not failed.value.retryable
    assert (one.transcripts, other.transcripts) == (1, 0)


@pytest.mark.parametrize("servers", [1, 2])
async def test_what_models_that_work_fail_on_again_and_again_is_given_up(servers: int):
    tritons = [SmallTriton() for _ in range(servers)]
    async with fleet_of(*tritons) as fleet:
        for triton in tritons:
            triton.failures = [BROKEN] * 3
        with pytest.raises(InferenceError, match="out of bounds") as failed:
            await fleet.transcribe(final())
        assert not failed.value.retryable
        for triton in tritons:
            triton.failures = ()
        assert (await fleet.transcribe(final())).text == TEXT


async def test_a_final_outlives_a_dead_process_among_several():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        triton.failures = [(500, "Stub process 'x' is not healthy.")] * 100
        asked = asyncio.create_task(fleet.transcribe(final()))
        await asyncio.sleep(1.0)  # as long as the supervisor needs
        triton.failures = ()
        assert (await asked).text == TEXT


async def test_a_model_that_answers_probes_with_errors_too_is_worth_another_try_later():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        triton.failure = (500, "Stub process 'x' is not healthy.")
        with pytest.raises(InferenceError, match="not healthy") as failed:
            await fleet.transcribe(final())
        assert failed.value.retryable


async def test_while_nobody_works_a_request_waits_for_the_first_that_does():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        triton.failure = AWAY
        with pytest.raises(InferenceError):
            await fleet.transcribe(final())
        with pytest.raises(InferenceError, match="does not answer|fails|stopping"):
            await fleet.variants()
        waiting = asyncio.create_task(fleet.transcribe(final()))
        await asyncio.sleep(0.3)
        triton.failure = None
        async with asyncio.timeout(2):
            assert (await waiting).text == TEXT


async def test_if_nobody_works_for_long_they_are_asked_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(fleet, "RETURN_S", 0.1)
    triton = SmallTriton()
    async with fleet_of(triton) as several:
        triton.failure = AWAY
        for asked in (1, 2, 3):
            with pytest.raises(InferenceError, match="is stopping") as failed:
                await several.transcribe(final())
            assert failed.value.retryable
            assert triton.transcripts == asked


async def test_a_model_without_memory_says_so_and_another_is_asked():
    one, other = SmallTriton(), SmallTriton()
    times = list[float]()
    async with serving(one) as here, serving(other) as there:
        urls = [f"127.0.0.1:{port}" for port in (here, there)]
        fleet = Fleet(urls, lambda: times.append(time.monotonic()))
        await fleet.variants()
        one.failures = [NO_MEMORY]
        assert (await fleet.transcribe(final())).text == TEXT
        assert len(times) == 1
        one.failures = other.failures = [NO_MEMORY] * 2
        with pytest.raises(InferenceError, match="out of memory") as failed:
            await fleet.transcribe(final())
        assert failed.value.retryable
        await fleet.close()


# --- silence --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_silent_server_is_noticed_and_its_finals_are_asked_of_another(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO)
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        await speech_probabilities(fleet.request_speech, start("a"))
        one.living.clear()
        listening = asyncio.create_task(speech_probabilities(fleet.request_speech, more("a")))
        assert (await fleet.transcribe(final())).text == TEXT
        with pytest.raises(SequenceLost, match="is silent"):
            await listening
        await speech_probabilities(fleet.request_speech, start("a2"))
        assert other.sequences == [("a2", "start")]
        assert set(await fleet.variants()) == {"fast", "accurate"}
        one.living.set()
        await until(lambda: "is heard again" in caplog.text)


@pytest.mark.usefixtures("impatient")
async def test_a_model_that_answers_nobody_while_somebody_waits_is_mute(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(fleet, "MUTE_S", 0.5)
    hangs, works = SmallTriton(), SmallTriton()
    async with fleet_of(hangs, works) as tritons:
        hangs.answering.clear()
        waiting = [asyncio.create_task(tritons.transcribe(final())) for _ in range(2)]
        await asyncio.sleep(0.3)
        assert not tritons.mute("fast")
        await until(lambda: tritons.mute("fast"))
        assert not tritons.mute("accurate")
        # What nobody waits for any more does not count.
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not tritons.mute("fast")
        hangs.answering.set()


async def test_a_model_with_too_much_to_do_is_not_mute(monkeypatch: pytest.MonkeyPatch):
    class Busy(SmallTriton):
        async def infer(self, asked: Asked) -> dict[str, Tensor]:
            await asyncio.sleep(0.8)
            return await super().infer(asked)

    monkeypatch.setattr(fleet, "MUTE_S", 0.5)
    async with fleet_of(Busy()) as tritons:
        asked = list[asyncio.Task[Any]]()
        for number in range(12):  # each waits for longer; somebody is answered all the time
            asked.append(asyncio.create_task(tritons.transcribe(final())))
            await asyncio.sleep(0.2)
            assert number < 4 or not tritons.mute("fast")
        await asyncio.gather(*asked)
        assert not tritons.mute("fast")


async def test_a_slow_server_is_no_silent_one():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        triton.answering.clear()
        waiting = asyncio.create_task(fleet.transcribe(final()))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        triton.answering.set()
        assert (await waiting).text == TEXT
    assert triton.transcripts == 1


@pytest.mark.usefixtures("impatient")
async def test_a_connection_that_was_lost_without_a_word_is_made_anew():
    triton = SmallTriton()
    async with serving(triton) as port:
        wire = Wire(port)
        async with wire as through:
            fleet = Fleet([f"127.0.0.1:{through}"])
            await fleet.variants()
            wire.cut()
            with pytest.raises(InferenceError, match="answered what was asked later") as failed:
                await fleet.transcribe(final())
            assert failed.value.retryable
            async with asyncio.timeout(5):
                assert (await fleet.transcribe(final())).text == TEXT
            await fleet.close()


class HalfHung(SmallTriton):
    """One of its instances hangs, with the first final it gets."""

    async def infer(self, asked: Asked) -> dict[str, Tensor]:
        first = self.transcripts == 0
        outputs = await super().infer(asked)
        if first and self.transcripts:
            await asyncio.Event().wait()
        return outputs


@pytest.mark.usefixtures("impatient")
async def test_a_final_that_others_overtook_long_ago_is_asked_of_another():
    one, other = HalfHung(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        one_hangs = asyncio.create_task(fleet.transcribe(final()))
        await until(lambda: one.transcripts == 1)
        assert (await one_hangs).text == TEXT
    assert (one.transcripts, other.transcripts) == (1, 1)


@pytest.mark.usefixtures("impatient")
async def test_a_final_that_is_only_slower_than_others_is_waited_for():
    triton = SlowWithLong(1.0)
    long = replace(final(), audio=bytes(64_000))
    async with fleet_of(triton) as fleet:
        for lost in (1, 0):  # until it is known how slow that is
            waiting = asyncio.create_task(fleet.transcribe(long))
            while not waiting.done():
                await fleet.transcribe(final())
                await asyncio.sleep(0.05)
            assert isinstance(waiting.exception(), InferenceError) == bool(lost)


@pytest.mark.usefixtures("impatient")
async def test_a_batch_of_long_finals_that_short_ones_overtake_is_waited_for():
    long = replace(final(), audio=bytes(64_000))  # 2 s
    async with fleet_of(SlowWithLong(1.5)) as fleet:
        waiting = [asyncio.create_task(fleet.transcribe(long)) for _ in range(8)]
        while not all(task.done() for task in waiting):
            await fleet.transcribe(final())
            await asyncio.sleep(0.05)
        assert [task.result().text for task in waiting] == [TEXT] * 8


async def test_what_nobody_waits_for_any_more_is_answered_all_the_same():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        triton.answering.clear()
        waiting = asyncio.create_task(fleet.transcribe(final()))
        await until(lambda: triton.transcripts == 1)
        waiting.cancel()
        await asyncio.sleep(0.1)
        triton.answering.set()
        await fleet.transcribe(final())
        assert triton.answered == 2


# --- what is served -------------------------------------------------------------------------------


async def test_nobody_there_is_an_error_with_a_sentence():
    fleet = Fleet([f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"])
    with pytest.raises(InferenceError, match="Triton: "):
        await fleet.variants()
    with pytest.raises(InferenceError, match="no Triton has whisper_fast") as failed:
        await fleet.transcribe(final())
    assert failed.value.retryable
    await fleet.close()


# --- models that are unloaded ---------------------------------------------------------------------

FAST = "whisper_fast"


async def asleep(fleet: Fleet, *tritons: SmallTriton) -> None:
    """The models of all Tritons, and the fleet knows."""
    for triton in tritons:
        for model in (FAST, "whisper_accurate"):
            triton.sleep(model)
    await fleet.variants()


async def test_models_that_are_asleep_are_served_and_not_probed():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        await asleep(fleet, triton)
        probes = triton.probes
        assert set(await fleet.variants()) == {"fast", "accurate"}
        assert fleet.asleep("fast")
        assert fleet.asleep("accurate")
        assert (triton.probes, triton.loads) == (probes, [])


async def test_a_session_has_its_model_loaded_and_no_other():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        await asleep(fleet, triton)
        triton.may_load.clear()
        fleet.wake("fast")
        fleet.wake("fast")
        await until(lambda: fleet.loading("fast"))
        assert not fleet.loading("accurate")
        triton.may_load.set()
        await until(lambda: not fleet.asleep("fast"))
        assert not fleet.loading("fast")
        assert fleet.asleep("accurate")
        assert triton.loads == [FAST]


async def test_a_model_that_is_awake_is_not_loaded_once_more():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        fleet.wake("fast")
        await asleep(fleet, triton)
        triton.asleep.clear()  # another worker was faster
        triton.marks.clear()
        fleet.wake("fast")
        await until(lambda: not fleet.asleep("fast"))
        assert triton.loads == []


@pytest.mark.parametrize("ask", [final, partial])
async def test_a_request_that_meets_an_unloaded_model_waits_for_it(ask: Any):
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        triton.sleep(FAST)
        triton.may_load.clear()
        asked = [asyncio.create_task(fleet.transcribe(ask())) for _ in range(5)]
        await until(lambda: triton.loads == [FAST])
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in asked)
        triton.may_load.set()
        assert {(await task).text for task in asked} == {TEXT}
        assert triton.loads == [FAST]


async def test_a_model_that_another_loads_is_waited_for():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        triton.asleep[FAST] = "LOADING"
        asked = asyncio.create_task(fleet.transcribe(final()))
        await asyncio.sleep(0.5)
        assert not asked.done()
        triton.asleep.clear()
        assert (await asked).text == TEXT
        assert triton.loads == []


async def test_a_model_that_cannot_be_loaded_is_a_failure_and_tried_again():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        await asleep(fleet, triton)
        triton.loadable = False
        with pytest.raises(InferenceError, match="cannot be loaded") as failed:
            await fleet.transcribe(final())
        assert failed.value.retryable
        triton.loadable = True
        assert (await fleet.transcribe(final())).text == TEXT
        assert triton.loads == [FAST, FAST]


async def test_a_triton_that_is_awake_is_asked_and_the_other_is_woken_when_that_is_busy():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        await asleep(fleet, one)
        assert not fleet.asleep("fast")
        for _ in range(3):
            await fleet.transcribe(final())
        assert (one.loads, other.transcripts) == ([], 3)
        other.answering.clear()
        busy = [asyncio.create_task(fleet.transcribe(final())) for _ in range(8)]
        await until(lambda: one.loads == [FAST])
        other.answering.set()
        await asyncio.gather(*busy)


async def test_the_other_triton_is_woken_when_the_one_that_is_awake_fails():
    one, other = SmallTriton(), SmallTriton()
    async with fleet_of(one, other) as fleet:
        await asleep(fleet, one)
        other.failure = AWAY
        with pytest.raises(InferenceError, match="is stopping"):
            await fleet.transcribe(final())
        assert fleet.asleep("fast")
        assert (await fleet.transcribe(final())).text == TEXT
        assert (one.loads, one.transcripts) == ([FAST], 1)


async def test_a_worker_that_finds_unknown_models_asleep_loads_them_to_know_them():
    triton = SmallTriton()
    for model in (FAST, "whisper_accurate"):
        triton.sleep(model)
    async with serving(triton) as port:
        fleet = Fleet([f"127.0.0.1:{port}"])
        with pytest.raises(InferenceError, match="no Whisper model is ready"):
            await fleet.variants()
        await until(lambda: not triton.asleep)
        known = dict[str, LoadedVariant]()
        async with asyncio.timeout(10):  # the VAD is doubted too, until it is seen to answer
            while not known:
                with contextlib.suppress(InferenceError):
                    known = await fleet.variants()
                await asyncio.sleep(0.01)
        assert set(known) == {"fast", "accurate"}
        await fleet.close()


async def test_models_that_answer_somebody_are_not_probed(monkeypatch: pytest.MonkeyPatch):
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        monkeypatch.setattr("dalston.orchestrator.inference.member.PROBE_AFTER_S", 0.05)
        await asyncio.sleep(0.1)
        probes = triton.probes
        triton.given += 1  # the supervisor's probes count
        await fleet.variants()
        assert triton.probes == probes
        await asyncio.sleep(0.1)
        await fleet.variants()
        assert triton.probes == probes + 2


async def test_a_model_that_fell_asleep_while_it_was_in_doubt_is_in_doubt_no_more():
    triton = SmallTriton()
    async with fleet_of(triton) as fleet:
        triton.failure = AWAY
        with pytest.raises(InferenceError, match="is stopping"):
            await fleet.transcribe(final())
        triton.failure = None
        triton.sleep(FAST)
        await until(lambda: fleet.asleep("fast"))
        assert set(await fleet.variants()) == {"fast", "accurate"}
        assert (await fleet.transcribe(final())).text == TEXT
