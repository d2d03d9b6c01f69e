"""Types of values that several transforms share."""

from typing import Annotated

from pydantic import Field

Probability = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=1)]
GreyLevel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[GreyLevel, GreyLevel, GreyLevel]
