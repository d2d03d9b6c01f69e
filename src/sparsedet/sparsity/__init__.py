"""Pruning of any `torch.nn.Module`: exact zeros, exact counts, measured.

Ten lines prune a model of your own; see `Sparsifier`.
"""

from sparsedet.sparsity.allocation import (
    ALLOCATIONS,
    Allocation,
    Energy,
    Erk,
    Global,
    Lamp,
    Sensitivity,
    SensitivityCurves,
    Uniform,
)
from sparsedet.sparsity.batch_norm import reestimate_batch_norm
from sparsedet.sparsity.calibration import Calibration
from sparsedet.sparsity.config import SparsityConfig
from sparsedet.sparsity.criteria import CRITERIA, Activation, Criterion, Gradient, Magnitude, Obc, Random
from sparsedet.sparsity.followers import DeadChannels
from sparsedet.sparsity.limits import Limit
from sparsedet.sparsity.measure import LayerMeasurement, Measurement, measure
from sparsedet.sparsity.parameters import match_parameters
from sparsedet.sparsity.patterns import NM, NM2D, PATTERNS, Block, Channel, Pattern, Unstructured, check_n_m
from sparsedet.sparsity.permutation import PermutationReport, PermutedGroup, permute_channels
from sparsedet.sparsity.predictions import find_predictions
from sparsedet.sparsity.profile import Profile, profile_model
from sparsedet.sparsity.schedules import SCHEDULES, Cubic, Dynamic, LevelWise, OneShot, Schedule
from sparsedet.sparsity.sensitivity import measure_sensitivity
from sparsedet.sparsity.sparsifier import Sparsifier
from sparsedet.sparsity.targets import PREDICTION, Selected, Targets, check_selector

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "NM",
    "NM2D",
    "PATTERNS",
    "PREDICTION",
    "SCHEDULES",
    "Activation",
    "Allocation",
    "Block",
    "Calibration",
    "Channel",
    "Criterion",
    "Cubic",
    "DeadChannels",
    "Dynamic",
    "Energy",
    "Erk",
    "Global",
    "Gradient",
    "Lamp",
    "LayerMeasurement",
    "LevelWise",
    "Limit",
    "Magnitude",
    "Measurement",
    "Obc",
    "OneShot",
    "Pattern",
    "PermutationReport",
    "PermutedGroup",
    "Profile",
    "Random",
    "Schedule",
    "Selected",
    "Sensitivity",
    "SensitivityCurves",
    "Sparsifier",
    "SparsityConfig",
    "Targets",
    "Uniform",
    "Unstructured",
    "check_n_m",
    "check_selector",
    "find_predictions",
    "match_parameters",
    "measure",
    "measure_sensitivity",
    "permute_channels",
    "profile_model",
    "reestimate_batch_norm",
]
