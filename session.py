"""Session: plans, runs and hands back results; the one object that owns a cluster.

A session knows nodes and plans, never the handle: what it is given is either a node or has a ``node``.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from .errors import HeadwaterError, ParameterError
from .lineage.fingerprint import Fingerprint
from .lineage.journal import Journal, default_root
from .ops.node import Node
from .planner.explain import explain_text
from .planner.optimizer import optimize
from .planner.options import PlanOptions
from .planner.physical import build_plan
from .planner.plan import PhysicalPlan


def plan(outputs: Mapping[str, Any], options: PlanOptions | None = None) -> PhysicalPlan:
    """Optimize the outputs together and cut them into stages.

    Args:
        outputs: output name to node, or to a handle that has one.
        options: the planner's numbers.

    Returns:
        The physical plan, with the rules' trace.
    """
    options = options or PlanOptions()
    optimized, trace = optimize(_nodes(outputs), options)
    return build_plan(optimized, options, trace)


def explain(outputs: Mapping[str, Any], options: PlanOptions | None = None) -> str:
    """Return logical, optimized and physical plans of outputs as text; runs nothing."""
    options = options or PlanOptions()
    nodes = _nodes(outputs)
    optimized, trace = optimize(nodes, options)
    return explain_text(nodes, optimized, build_plan(optimized, options, trace))


def _nodes(outputs: Mapping[str, Any]) -> dict[str, Node]:
    return {name: getattr(output, "node", output) for name, output in outputs.items()}
