"""The fault matrix: everything that can die, at every moment of a run, and not a byte changes.

One cell alone: ``pytest "tests/fault/test_matrix.py::test_nothing_that_dies_changes_a_byte[node-shuffle-read]"``,
or ``headwater chaos tests/fault/pipelines.py --param inputs=DIR --kill node@shuffle-read``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.chaos.cluster import ChaosCluster
from headwater.chaos.run import ChaosResult, Outcome, run_clean, run_under
from headwater.chaos.schedule import parse_fault
from headwater.chaos.text import result_text
from headwater.pipeline_file import load_module
from headwater.runtime.fault_points import PHASES

pytestmark = [pytest.mark.fault, pytest.mark.cluster]

NODES = 4
PIPELINE = Path(__file__).parent / "pipelines.py"
#: the row of the matrix, and what is done
FAULTS = {
    "worker": ("kill", "worker"),
    "node": ("kill", "node"),
    "hung worker": ("hang", "worker"),
    "scheduler": ("kill", "scheduler"),
    "driver": ("kill", "driver"),
    "node that returns": ("return", "node"),
    "disk full": ("fill", "node"),
}

#: by what the report shows that the fault was felt, and not slept through
SIGNS: dict[str, Callable[[ChaosResult], bool]] = {
    "worker": lambda result: result.recovery["workers_lost"] >= 1,
    "node": lambda result: result.recovery["nodes_lost"] >= 1,
    "hung worker": lambda result: "hung" in causes(result) or result.recovery["backups_won"] >= 1,
    "scheduler": lambda result: "scheduler died" in causes(result),
    "driver": lambda result: result.outcome.drivers == 2,
    "node that returns": lambda result: result.recovery["nodes_lost"] >= 1,
    "disk full": lambda result: "disk full" in causes(result),
}


def causes(result: ChaosResult) -> set[str]:
    return {loss["cause"] for loss in result.losses}


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("matrix")
    load_module(PIPELINE).write_inputs(folder / "inputs")
    return {"inputs": str(folder / "inputs"), "output": str(folder / "due")}


@pytest.fixture(scope="module")
def clean(cluster: ChaosCluster, params: dict[str, str]) -> Outcome:
    return run_clean(str(PIPELINE), params, cluster)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dies", FAULTS)
def test_nothing_that_dies_changes_a_byte(dies: str, phase: str, cluster, clean, params):
    action, target = FAULTS[dies]
    fault = parse_fault(action, f"{target}@{phase}")
    result = run_under(str(PIPELINE), params, [fault], cluster, clean=clean, limit=60)
    text = result_text(result, 1, f"headwater chaos {PIPELINE} {fault}")
    check(result, text)
    # a sink's files lie on another disk, and the tasks that come after it may all go to other nodes
    assert SIGNS[dies](result) or (dies, phase) == ("disk full", "sink"), text


def test_all_nodes_die_and_return_with_their_blocks(params, clean, tmp_path):
    faults = [parse_fault("return", "node@shuffle-read")]
    with ChaosCluster(nodes=1) as cluster:
        result = run_under(str(PIPELINE), params, faults, cluster, clean=clean, limit=60)
    check(result, text := result_text(result, 1, ""))
    assert result.recovery["nodes_lost"] == 1, text
    assert result.rerun == 0, text


def test_all_at_once(cluster, clean, params):
    faults = [
        parse_fault("kill", "node@shuffle-read"),
        parse_fault("hang", "worker@reduce"),
        parse_fault("kill", "driver@60%"),
        parse_fault("kill", "scheduler@sink"),
        parse_fault("slow", "worker:10x"),
    ]
    result = run_under(str(PIPELINE), params, faults, cluster, clean=clean, limit=90)
    check(result, text := result_text(result, 1, ""))
    assert result.outcome.drivers == 2, text


def check(result: ChaosResult, text: str) -> None:
    """The faults happened, the bytes are the same, no more was made again than had to be, nothing is left."""
    assert not result.missed, text
    assert result.equal, text
    assert result.rerun == result.minimum, text
    assert not result.orphans, text
    assert not result.leftovers, text
