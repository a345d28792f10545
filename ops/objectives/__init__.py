"""Objectives: what a training minimizes; public as ``headwater.objectives``."""

from __future__ import annotations

from .custom import custom
from .factorization import FactorizationMachine
from .linear import LinearRegression, LogisticRegression, SoftmaxRegression
from .mlp import MLP
from .objective import Objective
from .torch import Torch

__all__ = [
    "MLP",
    "FactorizationMachine",
    "LinearRegression",
    "LogisticRegression",
    "Objective",
    "SoftmaxRegression",
    "Torch",
    "custom",
]
