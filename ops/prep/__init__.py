"""Preparation: steps that are fitted on some rows and change others."""

from __future__ import annotations

from .bucketize import Bucketize
from .encode import OneHot, Ordinal
from .fit import FittedNodes
from .impute import Impute
from .scale import MinMax, RobustScale, Standardize
from .step import Chain, Step
from .store import dump, load_text

__all__ = [
    "Bucketize",
    "Chain",
    "FittedNodes",
    "Impute",
    "MinMax",
    "OneHot",
    "Ordinal",
    "RobustScale",
    "Standardize",
    "Step",
    "dump",
    "load_text",
]
