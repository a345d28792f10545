"""Optimizers, schedules of learning rates, and settings of solvers; public as ``headwater.optim``."""

from __future__ import annotations

from .algorithms import adagrad, adam, adamw, lamb, lion, momentum, nesterov, sgd
from .norms import global_norm
from .optimizer import Optimizer, Transformation, chain
from .schedules import (
    Schedule,
    constant,
    cosine,
    exponential,
    linear,
    one_cycle,
    polynomial,
    step,
    warmup,
)
from .solvers import Solver, lbfgs, newton
from .transformations import clip_by_global_norm, clip_by_value, l2, weight_decay

__all__ = [
    "Optimizer",
    "Schedule",
    "Solver",
    "Transformation",
    "adagrad",
    "adam",
    "adamw",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "constant",
    "cosine",
    "exponential",
    "global_norm",
    "l2",
    "lamb",
    "lbfgs",
    "linear",
    "lion",
    "momentum",
    "nesterov",
    "newton",
    "one_cycle",
    "polynomial",
    "sgd",
    "step",
    "warmup",
    "weight_decay",
]
