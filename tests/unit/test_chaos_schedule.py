"""Schedules of faults: what is read, what is drawn, and that a seed draws the same again."""

from __future__ import annotations

import pytest

from headwater.chaos.harness import ChaosPlan
from headwater.chaos.schedule import (
    ACTIONS,
    COSTLY,
    Fault,
    Moment,
    parse_fault,
    random_schedule,
    seed_of_run,
    victim_order,
)
from headwater.cli import execute
from headwater.errors import ParameterError
from headwater.runtime.fault_points import PHASES


@pytest.mark.parametrize(
    ("action", "text", "expected"),
    [
        ("kill", "node@50%", Fault("kill", "node", Moment(share=0.5))),
        ("kill", "worker@shuffle-read", Fault("kill", "worker", Moment(phase="shuffle-read"))),
        ("hang", "worker@2s", Fault("hang", "worker", Moment(seconds=2.0))),
        ("kill", "driver", Fault("kill", "driver", Moment(share=0.5))),
        ("slow", "worker:10x", Fault("slow", "worker", Moment(seconds=0.0), 10.0)),
        ("slow", "worker:2.5x@12.5%", Fault("slow", "worker", Moment(share=0.125), 2.5)),
    ],
)
def test_faults_are_read_and_written(action: str, text: str, expected: Fault):
    fault = parse_fault(action, text)
    assert fault == expected
    option, written = str(fault).split(" ")
    assert parse_fault(option.removeprefix("--"), written) == fault


@pytest.mark.parametrize(
    ("action", "text", "says"),
    [
        ("kill", "nod@50%", "Did you mean 'node'"),
        ("hang", "driver", "Valid: 'worker', 'node'"),
        ("kill", "node@shufle-read", "shuffle-read"),
        ("kill", "node@150%", "no moment"),
        ("kill", "node@", "no moment"),
        ("slow", "worker", "worker:10x"),
        ("slow", "worker:fast", "how many times"),
        ("slow", "worker:1x", "how many times"),
        ("kill", "worker:10x", "--kill worker@50%"),
    ],
)
def test_faults_that_make_no_sense_say_what_would(action: str, text: str, says: str):
    with pytest.raises(ParameterError, match=says):
        parse_fault(action, text)


def test_a_seed_draws_the_same_faults_again_and_another_one_others():
    drawn = [random_schedule(seed, 4) for seed in range(200)]
    assert drawn == [random_schedule(seed, 4) for seed in range(200)]
    assert len({tuple(map(str, faults)) for faults in drawn}) > 150


def test_drawn_faults_are_of_every_kind_at_every_moment():
    faults = [fault for seed in range(300) for fault in random_schedule(seed, 4)]
    assert {(f.action, f.target) for f in faults} == {
        (a, t) for a, targets in ACTIONS.items() for t in targets
    }
    assert {f.moment.phase for f in faults} == {None, *PHASES}
    assert all(parse_fault(f.action, str(f).split(" ")[1]) == f for f in faults)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_drawn_faults_leave_a_node_to_go_on_with(nodes: int):
    for seed in range(300):
        faults = random_schedule(seed, nodes)
        assert 1 <= len(faults) <= 3
        assert sum((f.action, f.target) in COSTLY for f in faults) < max(nodes, 1)
        for target in ("scheduler", "driver"):
            assert sum(f.target == target for f in faults) <= 1


def test_faults_are_drawn_of_the_kinds_that_are_wanted():
    kinds = [("kill", "worker"), ("kill", "node")]
    drawn = {(f.action, f.target) for seed in range(50) for f in random_schedule(seed, 4, kinds)}
    assert drawn == set(kinds)


def test_victims_are_all_there_are_in_an_order_of_the_seed():
    assert sorted(victim_order(3, 5)) == [0, 1, 2, 3, 4]
    assert victim_order(3, 5) == victim_order(3, 5)
    assert len({tuple(victim_order(seed, 5)) for seed in range(50)}) > 10


def test_any_run_can_be_repeated_alone():
    plan = ChaosPlan("rides.py", {"rows": "10 k"}, runs=9, seed=40, nodes=3)
    seed = seed_of_run(plan.seed, 7)
    assert plan.repeat(seed) == "headwater chaos rides.py --param 'rows=10 k' --seed 47 --nodes 3"
    alone = ChaosPlan("rides.py", {}, seed=47, nodes=3)
    assert alone.faults_of(seed_of_run(alone.seed, 0)) == plan.faults_of(seed)


def test_faults_that_were_asked_for_are_repeated_too():
    plan = ChaosPlan("rides.py", {}, [parse_fault("kill", "node@50%"), parse_fault("slow", "worker:10x")])
    assert plan.repeat(3) == "headwater chaos rides.py --kill node@50% --slow worker:10x@0s --seed 3"
    assert (
        ChaosPlan("rides.py", {}, device="gpu").repeat(3) == "headwater chaos rides.py --seed 3 --device gpu"
    )
    assert plan.faults_of(3) == list(plan.faults)


def test_the_command_says_what_a_fault_should_have_been(capsys: pytest.CaptureFixture[str]):
    assert execute(["chaos", "rides.py", "--kill", "nodes@50%"]) == 2
    assert "Did you mean 'node'?" in capsys.readouterr().err
