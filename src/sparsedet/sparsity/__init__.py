"""Pruning of any `torch.nn.Module`: exact zeros, exact counts, measured.

Ten lines prune a model of your own; see `Sparsifier`.
"""

from sparsedet.sparsity.allocation import ALLOCATIONS, Allocation, Energy, Erk, Global, Lamp, Uniform
from sparsedet.sparsity.config import SparsityConfig
from sparsedet.sparsity.criteria import CRITERIA, Criterion, Magnitude
from sparsedet.sparsity.measure import LayerMeasurement, Measurement, measure
from sparsedet.sparsity.patterns import NM, PATTERNS, Pattern, Unstructured, check_n_m
from sparsedet.sparsity.profile import Profile, profile_model
from sparsedet.sparsity.schedules import SCHEDULES, LevelWise, OneShot, Schedule
from sparsedet.sparsity.sparsifier import Sparsifier
from sparsedet.sparsity.targets import Selected, Targets

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "NM",
    "PATTERNS",
    "SCHEDULES",
    "Allocation",
    "Criterion",
    "Energy",
    "Erk",
    "Global",
    "Lamp",
    "LayerMeasurement",
    "LevelWise",
    "Magnitude",
    "Measurement",
    "OneShot",
    "Pattern",
    "Profile",
    "Schedule",
    "Selected",
    "Sparsifier",
    "SparsityConfig",
    "Targets",
    "Uniform",
    "Unstructured",
    "check_n_m",
    "measure",
    "profile_model",
]
