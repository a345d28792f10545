"""Whatever dies, hangs, joins or leaves in the middle of a training, the model has the bytes of an undisturbed one.

One cell alone, by hand: ``python tests/fault/training_pipeline.py DIR``, and then
``headwater chaos tests/fault/training_pipeline.py --param inputs=DIR --kill node@train-step:30``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.chaos.cluster import ChaosCluster
from headwater.chaos.run import ChaosResult, Outcome, run_clean, run_under
from headwater.chaos.schedule import Fault, parse_fault, random_schedule
from headwater.chaos.text import result_text
from headwater.pipeline_file import load_module

pytestmark = [pytest.mark.fault, pytest.mark.cluster]

NODES = 4
PIPELINE = Path(__file__).parent / "training_pipeline.py"
#: steps of the pipeline's training, validation included
STEPS = 84

#: what is done, and whether members are lost by it
FAULTS = {
    "worker": ([("kill", "worker@train-step:30")], True),
    "node": ([("kill", "node@train-step:31")], True),
    "hung worker": ([("hang", "worker@train-step:29")], True),
    "scheduler": ([("kill", "scheduler@train-step:28")], False),
    "driver": ([("kill", "driver@train-step:27")], False),
    "node that leaves": ([("leave", "node@train-step:20")], False),
    "node that joins": ([("join", "node@train-step:20")], False),
    "two nodes at once": ([("kill", "node@train-step:33"), ("kill", "node@train-step:33")], True),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("training") / "inputs"
    load_module(PIPELINE).write_inputs(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clean(cluster: ChaosCluster, inputs: str) -> Outcome:
    return run_clean(str(PIPELINE), {"inputs": inputs}, cluster)


@pytest.mark.parametrize("dies", FAULTS)
def test_nothing_that_dies_changes_a_bit_of_the_model(dies: str, cluster, clean, inputs):
    faults, loses = FAULTS[dies]
    result = run(faults, cluster, clean, inputs)
    logs = [stage["training"] for stage in result.outcome.report["stages"] if stage["training"]]
    assert all(log["steps"] == STEPS for log in logs)
    assert logs or dies in ("driver", "scheduler")  # whoever comes next may find the model done
    for log in logs if loses else ():
        # the last coordinator's view: if its own worker was hit, it is a later one that found the others' state
        assert log["lost"] or log["adopted_step"] > 0, log
        assert log["steps_lost"] <= len(faults), log


def test_sharded_state_is_put_together_from_the_living(cluster, clean, inputs):
    faults = [("kill", "node@train-step:30"), ("join", "node@train-step:10")]
    run(faults, cluster, clean, inputs, sharded="true")


def test_random_faults_change_nothing(cluster, clean, inputs):
    faults = random_schedule(2, nodes=4, steps=STEPS)
    check(run_under(str(PIPELINE), {"inputs": inputs}, faults, cluster, seed=2, clean=clean, limit=90))


def run(
    faults: list[tuple[str, str]], cluster: ChaosCluster, clean: Outcome, inputs: str, **params: str
) -> ChaosResult:
    schedule: list[Fault] = [parse_fault(*fault) for fault in faults]
    given = {"inputs": inputs, **params}
    result = run_under(str(PIPELINE), given, schedule, cluster, clean=clean, limit=90)
    check(result)
    assert not result.missed, result_text(result, 1, "")
    return result


def check(result: ChaosResult) -> None:
    assert result.ok, result_text(result, 1, "")
