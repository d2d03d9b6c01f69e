"""Schedules: when to prune, and how much in total."""

from typing import Annotated

from pydantic import Field

from sparsedet.sparsity.schedules.level_wise import LevelWise
from sparsedet.sparsity.schedules.one_shot import OneShot

SCHEDULES = {"level_wise": LevelWise, "one_shot": OneShot}
"""Name in a recipe -> class."""

Schedule = Annotated[LevelWise | OneShot, Field(discriminator="type")]
"""What `schedule:` accepts."""

__all__ = ["SCHEDULES", "LevelWise", "OneShot", "Schedule"]
