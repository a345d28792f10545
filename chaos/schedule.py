"""Schedules: which faults happen to a run, when and to whom. Pure: texts and seeds in, faults out."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ParameterError, did_you_mean
from ..runtime.fault_points import PHASES, TRAIN_STEP

#: what can be done, and to whom
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "kill": ("worker", "node", "scheduler", "driver"),
    "hang": ("worker", "node"),
    "return": ("node",),
    "fill": ("node",),
    "slow": ("worker",),
    "join": ("node",),
    "leave": ("node",),
}
#: faults that take a node's blocks away, or keep its processes from working, for good
COSTLY = (("kill", "node"), ("hang", "node"), ("hang", "worker"), ("fill", "node"), ("leave", "node"))
_SLOWEST = 100.0
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s")
_STEP = re.compile(rf"{TRAIN_STEP}:\d+")
_FACTOR = re.compile(r"(\d+(?:\.\d+)?)x")


@dataclass(frozen=True)
class Moment:
    """When a fault happens: one of the three is set.

    Attributes:
        share: of the run's partitions that are done, 0 to 1.
        seconds: since the run began.
        phase: that a process has just reached, one of `PHASES` or a step of a training as "train-step:17"; it waits
            there until the fault has happened.
    """

    share: float | None = None
    seconds: float | None = None
    phase: str | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f"{self.share * 100:g}%"
        return self.phase if self.phase is not None else f"{self.seconds:g}s"


@dataclass(frozen=True)
class Fault:
    """One fault of a schedule; as text, what the command line takes.

    Attributes:
        action: one of `ACTIONS`.
        target: "worker" (one process), "node" (its processes and scratch), "scheduler" or "driver".
        moment: when.
        factor: by which a worker is slowed.

    Example:
        >>> print(parse_fault("kill", "node@50%"))
        --kill node@50%
    """

    action: str
    target: str
    moment: Moment
    factor: float = 1.0

    def __str__(self) -> str:
        factor = f":{self.factor:g}x" if self.action == "slow" else ""
        return f"--{self.action} {self.target}{factor}@{self.moment}"


def parse_fault(action: str, text: str) -> Fault:
    """Read ``TARGET[:FACTORx]@WHEN``; a fault without a moment comes half-way, a slow worker is slow from the start.

    Args:
        action: one of `ACTIONS`.
        text: such as ``node@50%``, ``worker@shuffle-read``, ``worker@2s`` or ``worker:10x``.

    Returns:
        The fault.

    Raises:
        ParameterError: an unknown target or moment, or a factor where there is none.
    """
    before, at, when = text.strip().partition("@")
    target, colon, factor = before.partition(":")
    option = f"--{action} {text}"
    if target not in ACTIONS[action]:
        raise ParameterError(
            f"{option}: there is no {target!r} to {action}. {did_you_mean(target, ACTIONS[action])}"
        )
    if bool(colon) != (action == "slow"):
        wanted = "--slow worker:10x" if action == "slow" else f"--{action} {target}@{when or '50%'}"
        raise ParameterError(f"{option}: write {wanted}.")
    if not at:
        when = "0s" if action == "slow" else "50%"
    return Fault(action, target, _moment(when, option), _factor(factor, option) if colon else 1.0)


def random_schedule(
    seed: int, nodes: int, kinds: Sequence[tuple[str, str]] | None = None, steps: int = 0
) -> list[Fault]:
    """Draw one to three faults, of any kind at any moment, that leave at least one node to go on with.

    Args:
        seed: of the run; the same seed draws the same faults.
        nodes: how many nodes the cluster has.
        kinds: pairs of action and target to draw from; None is all.
        steps: of a training in the pipeline; most moments are then drawn from them.

    Returns:
        The faults.

    Example:
        >>> random_schedule(7, 4) == random_schedule(7, 4)
        True
    """
    draw = random.Random(f"schedule {seed}")
    choices = (
        list(kinds) if kinds is not None else [(a, t) for a, targets in ACTIONS.items() for t in targets]
    )
    faults: list[Fault] = []
    costly = 0
    for _ in range(draw.randint(1, 3)):
        action, target = draw.choice(choices)
        if target in ("scheduler", "driver") and any(f.target == target for f in faults):
            continue
        if (action, target) in COSTLY:
            if costly + 1 >= nodes:
                continue
            costly += 1
        factor = float(draw.choice((2, 5, 10))) if action == "slow" else 1.0
        faults.append(Fault(action, target, _random_moment(draw, steps), factor))
    return faults or [Fault("kill", "worker", _random_moment(draw, steps))]


def seed_of_run(seed: int, run: int) -> int:
    """Return the seed of one of several runs; as the first of its own command it gives the same run again."""
    return seed + run


def victim_order(seed: int, count: int) -> list[int]:
    """Return the order in which nodes or workers are chosen as victims.

    Args:
        seed: of the run.
        count: how many there are.

    Returns:
        Their indices, shuffled.
    """
    order = list(range(count))
    random.Random(f"victims {seed}").shuffle(order)
    return order


def _moment(text: str, option: str) -> Moment:
    if text in PHASES or _STEP.fullmatch(text):
        return Moment(phase=text)
    if match := _PERCENT.fullmatch(text):
        if float(match[1]) <= 100:
            return Moment(share=float(match[1]) / 100)
    elif match := _SECONDS.fullmatch(text):
        return Moment(seconds=float(match[1]))
    raise ParameterError(
        f"{option}: {text!r} is no moment. Write a share as 50%, a time as 2s, or a phase: "
        f"{', '.join(PHASES)}, {TRAIN_STEP}:17."
    )


def _factor(text: str, option: str) -> float:
    match = _FACTOR.fullmatch(text)
    if match is None or not 1 < float(match[1]) <= _SLOWEST:
        raise ParameterError(f"{option}: write how many times slower, from 1 to {_SLOWEST:g}, as worker:10x.")
    return float(match[1])


def _random_moment(draw: random.Random, steps: int) -> Moment:
    if steps and draw.random() < 0.8:
        return Moment(phase=f"{TRAIN_STEP}:{draw.randrange(steps)}")
    if draw.random() < 0.5:
        return Moment(phase=draw.choice(PHASES))
    return Moment(share=draw.randint(0, 95) / 100)
