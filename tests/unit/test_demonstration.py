"""What the demo says of its two runs: the kill, what it cost the training, and whether the digests are equal."""

from __future__ import annotations

from typing import Any

import pytest

from headwater.chaos.demonstration import Demonstration, demonstration_lines
from headwater.chaos.injector import Injected
from headwater.chaos.schedule import parse_fault
from headwater.runtime.report import OutputReport, RecoveryReport, RunReport, StageReport
from headwater.runtime.training.job import TrainingLog

CLEAN = {"model": "a" * 32, "quality": "b" * 32}


def report(digests: dict[str, str], training: dict[str, Any] | None = None) -> RunReport:
    outputs = {name: OutputReport(1, 1, digest, 1) for name, digest in digests.items()}
    stages = (
        StageReport(0, "scan", 1, 1, 1, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0),
        StageReport(1, "train", 1, 1, 1, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0, training),
    )
    return RunReport("run", "demo", "finished", 1.0, outputs, stages, RecoveryReport(), {}, 0)


def found(
    log: TrainingLog, digests: dict[str, str] = CLEAN, killed: bool = True, pause: float | None = 1.5
) -> Demonstration:
    fault = parse_fault("kill", "node@train-step:7")
    injected = Injected(fault, "n2", 3.0, 0.0) if killed else None
    return Demonstration(report(CLEAN), report(digests, log.record()), 7, injected, pause)


def test_a_member_died():
    demonstration = found(TrainingLog(steps=20, generations=2, members=3, steps_lost=1, stalls=[0.25]))
    kill, training, _, model, quality = demonstration_lines(demonstration)
    assert kill == "Killed: node n2, by SIGKILL, its scratch deleted, in step 7 of 20, 3.0 s into the run."
    assert training == "Training: 1 step lost and repeated, the next one done 0.2 s later, by 3 workers."
    assert model.split() == ["model", "a" * 32, "a" * 32, "equal"]
    assert quality.split() == ["quality", "b" * 32, "b" * 32, "equal"]
    assert demonstration.equal


def test_the_coordinator_died():
    training = demonstration_lines(found(TrainingLog(steps=20, members=3, adopted_step=7)))[1]
    assert training.startswith("Training: 1 step lost and repeated.")
    assert training.endswith("another worker took over; it went on 1.5 s after the kill.")


def test_all_of_them_died():
    training = demonstration_lines(found(TrainingLog(steps=20, members=1), pause=None))[1]
    assert training == "Training: nobody else knew its state, so it began anew, from lineage."


@pytest.mark.parametrize("other", [{"model": "a" * 32, "quality": "c" * 32}, {"model": "a" * 32}])
def test_a_digest_that_differs_is_told_and_no_success(other: dict[str, str]):
    demonstration = found(TrainingLog(steps=20, members=3, stalls=[0.25]), other)
    assert demonstration.differing == ["quality"]
    assert not demonstration.equal
    assert demonstration_lines(demonstration)[-1].endswith("DIFFERENT")


def test_a_kill_that_never_came_is_no_success():
    demonstration = found(TrainingLog(steps=5, members=4), killed=False)
    assert not demonstration.equal
    assert demonstration_lines(demonstration)[0] == "No node was killed: the training has no step 7."
