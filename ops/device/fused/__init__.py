"""Expressions as lines of CUDA: how each function of an expression is computed for one row on a device."""

from . import (  # noqa: F401  (they put their rules into RULES)
    arithmetic,
    comparison,
    conditional,
    metrics,
    numeric,
    temporal,
)
