import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.waiting import until

from dalston.orchestrator.inference.turns import LOOK_S, PATIENCE_S, PAUSE_S, Turns


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_at_a_time_and_the_rest_in_the_order_they_came():
    turns, went = Turns(2), list[int]()

    async def one(number: int) -> None:
        await turns.acquire()
        went.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(4)]
    await settled()
    assert went == [0, 1]
    turns.release()
    await settled()
    assert went == [0, 1, 2]
    turns.release()
    await asyncio.gather(*tasks)
    assert went == [0, 1, 2, 3]


async def test_what_goes_without_waiting_is_made_up_for():
    turns, went = Turns(2), list[int]()

    async def one(number: int) -> None:
        await turns.acquire()
        went.append(number)

    for _ in range(3):
        turns.acquire_now()
    tasks = [asyncio.create_task(one(number)) for number in range(2)]
    for back, expected in enumerate([[], [], [0], [0, 1]]):
        if back:
            turns.release()
        await settled()
        assert went == expected
    await asyncio.gather(*tasks)


async def test_it_is_crowded_when_four_times_as_many_have_gone_as_should():
    turns, told = Turns(2), list[bool]()
    for _ in range(8):
        told.append(turns.crowded)
        turns.acquire_now()
    assert told == [False] * 8
    assert turns.crowded
    turns.release()
    assert not turns.crowded


async def test_nobody_overtakes_who_waits():
    turns = Turns(1)
    await turns.acquire()
    first = asyncio.create_task(turns.acquire())
    await settled()
    turns.release()
    second = asyncio.create_task(turns.acquire())
    await settled()
    assert (first.done(), second.done()) == (True, False)
    turns.release()
    await asyncio.wait_for(second, 1)


@pytest.mark.parametrize("comes_first", [False, True])
async def test_a_turn_that_nobody_wants_any_more_goes_to_the_next(comes_first: bool):
    turns = Turns(1)
    await turns.acquire()
    gone, stays = asyncio.create_task(turns.acquire()), asyncio.create_task(turns.acquire())
    await settled()
    if comes_first:  # the turn comes in the moment in which it is called off
        turns.release()
        gone.cancel()
    else:
        gone.cancel()
        await settled()
        turns.release()
    await asyncio.wait_for(stays, 1)
    assert gone.cancelled()
    turns.release()
    await asyncio.wait_for(turns.acquire(), 1)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def last(turns: Turns, number: int) -> list["asyncio.Task[None]"]:
    return [asyncio.create_task(turns.acquire_last()) for _ in range(number)]


def gone(tasks: list["asyncio.Task[None]"]) -> int:
    return sum(task.done() for task in tasks)


async def test_who_goes_last_has_all_places_but_one_while_nobody_else_asks():
    turns = Turns(9, places=3, clock=Clock())
    tasks = last(turns, 4)
    await settled()
    assert gone(tasks) == 2
    turns.release_last()
    await settled()
    assert gone(tasks) == 3
    for _ in range(3):
        turns.release_last()
    await asyncio.gather(*tasks)


async def test_where_places_are_few_who_goes_last_goes_in_the_pauses_of_others():
    clock = Clock()
    turns = Turns(6, places=2, clock=clock)
    turns.acquire_now()
    tasks = last(turns, 2)
    turns.release()
    await settled()
    assert gone(tasks) == 0  # somebody speaks, and asks again in a moment
    clock.now += PAUSE_S + 0.01
    await until(lambda: gone(tasks) == 1)
    turns.acquire_now()  # which finds a place
    turns.release_last()
    clock.now += PAUSE_S + 0.01
    await asyncio.sleep(2 * LOOK_S)
    assert gone(tasks) == 1  # it is not answered yet
    turns.release()
    await settled()
    assert gone(tasks) == 2


async def test_who_goes_last_goes_at_last_though_others_never_pause():
    clock = Clock()
    turns = Turns(6, places=2, clock=clock)
    turns.acquire_now()
    tasks = last(turns, 1)
    while not gone(tasks):
        turns.release()
        await settled()
        turns.acquire_now()
        clock.now += 0.5
        assert clock.now < 100 + 2 * PATIENCE_S
    assert clock.now >= 100 + PATIENCE_S


async def test_where_places_are_many_half_of_them_are_left_to_others():
    turns = Turns(16, places=16, clock=Clock())
    for _ in range(3):
        turns.acquire_now()
    tasks = last(turns, 8)
    await settled()
    assert gone(tasks) == 4  # with three others seven of sixteen
    for _ in range(3):
        turns.release()
    await settled()
    assert gone(tasks) == 7
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_goes_last_goes_after_all_who_wait():
    clock = Clock()
    turns, went = Turns(1, places=1, clock=clock), list[str]()

    async def one(name: str, acquire: Callable[[], Awaitable[None]]) -> None:
        await acquire()
        went.append(name)

    turns.acquire_now()
    tasks = [
        asyncio.create_task(one("last", turns.acquire_last)),
        asyncio.create_task(one("first", turns.acquire)),
        asyncio.create_task(one("second", turns.acquire)),
    ]
    await settled()
    assert went == []
    for expected in (["first"], ["first", "second"], ["first", "second"]):
        turns.release()
        await settled()
        assert went == expected
    clock.now += PAUSE_S + 0.01
    await until(lambda: went == ["first", "second", "last"])
    await asyncio.gather(*tasks)


async def test_who_goes_last_and_is_no_longer_wanted_takes_no_place():
    turns = Turns(2, places=1, clock=Clock())
    await turns.acquire_last()
    tasks = last(turns, 2)
    await settled()
    tasks[0].cancel()
    turns.release_last()
    tasks[1].cancel()  # it has just come
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.wait_for(turns.acquire_last(), 1)
