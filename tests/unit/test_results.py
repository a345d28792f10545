"""Results on their way from a worker to the driver: each once, in order, and held as long as they have to be."""

import asyncio
import functools
from threading import Thread

from headwater.runtime.task import Metrics, TaskResult
from headwater.runtime.workers.results import Results, pack_outcome, unpack_outcome


def in_loop(test):
    """Run an asynchronous test to its end."""
    return functools.wraps(test)(lambda: asyncio.run(test()))


def result(number):
    return TaskResult(0, number, 0, "node", "worker", (), Metrics())


def names(reply):
    return [unpack_outcome(outcome)[0] for _, outcome in reply["outcomes"]]


async def in_thread(function, *numbers):
    """Hand results over from another thread, as tasks do."""
    thread = Thread(target=lambda: [function(number) for number in numbers])
    thread.start()
    await asyncio.to_thread(thread.join)


def poster(results, run):
    return lambda number: results.post(run, result(number))


def deliverer(results, run):
    return lambda number: results.deliver(run, pack_outcome(f"s0-t{number}#0", result(number)))


async def asked(results, *args):
    task = asyncio.ensure_future(results.collect(*args))
    await asyncio.sleep(0)
    return task


@in_loop
async def test_results_come_in_order_and_again_until_the_driver_has_them():
    results = Results(asyncio.get_running_loop())
    waits = await asked(results, "r1", 60)
    await in_thread(deliverer(results, "r1"), 0)
    assert names(await waits) == ["s0-t0#0"]
    await in_thread(deliverer(results, "r1"), 1, 2)
    assert names(await results.collect("r1", 60)) == ["s0-t0#0", "s0-t1#0", "s0-t2#0"]
    assert names(await results.collect("r1", 60, 1)) == ["s0-t1#0", "s0-t2#0"]
    assert names(await results.collect("r1", 0, 3)) == []


@in_loop
async def test_what_came_by_way_of_dask_is_held_for_those_who_ask_only_and_bounded():
    results = Results(asyncio.get_running_loop())
    await in_thread(poster(results, "r1"), 0)
    assert names(await results.collect("r1", 0)) == []
    await in_thread(poster(results, "r1"), *range(1000))
    assert names(await results.collect("r1", 0)) == [f"s0-t{number}#0" for number in range(936, 1000)]
    await in_thread(deliverer(results, "r2"), *range(1000))
    assert len(names(await results.collect("r2", 0))) == 1000


@in_loop
async def test_who_waits_for_a_run_that_ends_is_told():
    results = Results(asyncio.get_running_loop())
    waits = await asked(results, "r1", 60)
    results.forget("r1")
    assert (await waits) == {"status": "OK", "outcomes": [], "over": True}


def test_errors_arrive_with_their_tracebacks_and_causes_or_as_text():
    def fail():
        try:
            raise KeyError("inner")
        except KeyError as cause:
            raise ValueError("outer") from cause

    try:
        fail()
    except ValueError as error:
        name, arrived = unpack_outcome(pack_outcome("t", error))
    assert name == "t"
    assert isinstance(arrived, ValueError)
    assert isinstance(arrived.__cause__, KeyError)
    frames = []
    trace = arrived.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "fail" in frames

    error = ValueError("has a lock")
    error.lock = __import__("threading").Lock()
    assert str(unpack_outcome(pack_outcome("t", error))[1]) == "ValueError: has a lock"
