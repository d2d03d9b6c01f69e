"""Schedules: when to prune, and how much in total."""

from typing import Annotated

from pydantic import Field

from sparsedet.sparsity.schedules.cubic import Cubic
from sparsedet.sparsity.schedules.dynamic import Dynamic
from sparsedet.sparsity.schedules.level_wise import LevelWise
from sparsedet.sparsity.schedules.one_shot import OneShot
from sparsedet.sparsity.schedules.schedule import BaseSchedule, Change, MaskUpdate, whole_number

SCHEDULES = {"level_wise": LevelWise, "one_shot": OneShot, "cubic": Cubic, "dynamic": Dynamic}
"""Name in a recipe -> class."""

Schedule = Annotated[LevelWise | OneShot | Cubic | Dynamic, Field(discriminator="type")]
"""What `schedule:` accepts."""

__all__ = [
    "SCHEDULES",
    "BaseSchedule",
    "Change",
    "Cubic",
    "Dynamic",
    "LevelWise",
    "MaskUpdate",
    "OneShot",
    "Schedule",
    "whole_number",
]
