"""Results that go straight to the driver: given once, to who asks, and not held for who doesn't."""

import asyncio
import functools
import pickle
from threading import Thread

from headwater.runtime.task import Metrics, TaskResult
from headwater.runtime.workers.early_results import EarlyResults


def in_loop(test):
    """Run an asynchronous test to its end."""
    return functools.wraps(test)(lambda: asyncio.run(test()))


def result(number):
    return TaskResult(0, number, 0, "node", "worker", (), Metrics())


def names(reply):
    return [pickle.loads(data).name for data in reply["results"]]


async def posted(early, run, *numbers):
    """Post from another thread, as tasks do."""
    thread = Thread(target=lambda: [early.post(run, result(number)) for number in numbers])
    thread.start()
    await asyncio.to_thread(thread.join)


@in_loop
async def test_results_are_given_once_and_in_order():
    early = EarlyResults(asyncio.get_running_loop())
    asked = asyncio.ensure_future(early.results("r1", 60))
    await asyncio.sleep(0)
    await posted(early, "r1", 0)
    assert names(await asked) == ["s0-t0#0"]
    await posted(early, "r1", 1, 2)
    assert names(await early.results("r1", 60)) == ["s0-t1#0", "s0-t2#0"]
    assert await early.results("r1", 0) == {"status": "OK", "results": [], "over": False}


@in_loop
async def test_nothing_is_held_for_runs_that_nobody_asks_for_or_that_are_over():
    early = EarlyResults(asyncio.get_running_loop())
    await posted(early, "r1", 0)
    assert names(await early.results("r1", 0)) == []
    asked = asyncio.ensure_future(early.results("r1", 60))
    await asyncio.sleep(0)
    early.forget("r1")
    assert (await asked)["over"]
    await posted(early, "r1", 1)
    assert names(await early.results("r1", 0)) == []


@in_loop
async def test_what_a_driver_does_not_collect_is_bounded():
    early = EarlyResults(asyncio.get_running_loop())
    await early.results("r1", 0)
    await posted(early, "r1", *range(1000))
    assert names(await early.results("r1", 0)) == [f"s0-t{number}#0" for number in range(936, 1000)]
    asked = asyncio.ensure_future(early.results("r1", 60))
    await asyncio.sleep(0)
    for number in range(64):
        await early.results(f"other{number}", 0)
    assert (await asked)["over"]
