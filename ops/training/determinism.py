"""Determinism: a shard's statistics computed twice before the first step, and the bits compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import NonDeterministicError
from ...lineage.suspects import find_suspects, location
from ..backend import Array, to_host
from ..objectives.objective import Objective
from .program import Program, Shard, State


def check_repeats(
    program: Program, state: State, shard: Shard, objective: Objective | None = None
) -> Mapping[str, Array]:
    """Compute a shard's statistics twice, and raise if they differ by a bit.

    Two members that compute the same shard must get the same, and so must one that takes over from a dead one.

    Args:
        program, state: at the step to check; the first, as a rule.
        shard: one with rows.
        objective: of the program, whose functions are named; None takes the program's, if it has one.

    Returns:
        The statistics, as `Program.statistics` gives them.

    Raises:
        NonDeterministicError: they differ; names the objective, its functions and their lines, and what
            in them is suspect.
    """
    first = program.statistics(state, shard)
    second = program.statistics(state, shard)
    differing = [name for name in first if not _same(first[name], second[name])]
    if not differing:
        return first
    objective = objective if objective is not None else getattr(program, "objective", None)
    label = objective.label if objective is not None else type(program).__name__
    raise NonDeterministicError(
        f"{label}: the {' and the '.join(map(_word, differing))} of shard {shard.index} came out different when "
        f"computed twice from the same parameters and rows. {_cause(objective)}"
        "What an objective returns must depend on its arguments alone: no clocks, no unseeded random numbers (use the "
        "rng that it is given), no state, no order of sets."
    )


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays, of the host or a device, hold the same bits."""
    return a.dtype == b.dtype and a.shape == b.shape and to_host(a).tobytes() == to_host(b).tobytes()


def _word(name: str) -> str:
    return {"totals": "loss", "grad": "gradient"}.get(name, name)


def _cause(objective: Any) -> str:
    functions = objective.functions() if objective is not None else ()
    if not functions:
        return "It has no user code, so this is a defect of Headwater or of a library it calls. "
    names = [f"{getattr(f, '__qualname__', type(f).__name__)}, {location(f)}" for f in functions]
    suspects = [suspect for function in functions for suspect in find_suspects(function)]
    text = f"The cause is in {' or '.join(names)}. "
    if suspects:
        listed = "; ".join(f"{s.name} ({s.trap.value}) in {s.where}" for s in suspects[:3])
        text += f"Suspect there: {listed}. "
    return text
