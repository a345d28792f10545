"""Objectives: what a training minimizes; public as ``headwater.objectives``."""

from __future__ import annotations

from .als import ALS
from .custom import custom
from .factorization import FactorizationMachine
from .gmm import GaussianMixture
from .kmeans import KMeans
from .linear import LinearRegression, LogisticRegression, SoftmaxRegression
from .mlp import MLP
from .objective import Objective
from .pca import PCA
from .torch import Torch

__all__ = [
    "ALS",
    "MLP",
    "PCA",
    "FactorizationMachine",
    "GaussianMixture",
    "KMeans",
    "LinearRegression",
    "LogisticRegression",
    "Objective",
    "SoftmaxRegression",
    "Torch",
    "custom",
]
