"""The fault matrix: everything that can die, at every moment of a run, and not a byte changes.

One cell alone: ``pytest "tests/fault/test_matrix.py::test_nothing_that_dies_changes_a_byte[node-shuffle-read]"``,
or ``headwater chaos tests/fault/pipelines.py --param inputs=DIR --kill node@shuffle-read``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.chaos.cluster import ChaosCluster
from headwater.chaos.run import Outcome, run_clean, run_under
from headwater.chaos.schedule import parse_fault
from headwater.chaos.text import result_text
from headwater.pipeline_file import load_module
from headwater.runtime.fault_points import PHASES

pytestmark = [pytest.mark.fault, pytest.mark.cluster]

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


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("matrix")
    load_module(PIPELINE).write_inputs(folder / "inputs")
    return {"inputs": str(folder / "inputs"), "output": str(folder / "due")}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ChaosCluster]:
    with ChaosCluster(nodes=4) as cluster:
        yield cluster


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
    assert not result.missed, text
    assert result.equal, text
    assert result.rerun == result.minimum, text
    assert not result.orphans, text
    assert not result.leftovers, text
