"""Least and greatest sparsity of single weights, from a recipe or from a file."""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from sparsedet.common.config import ConfigModel, validate
from sparsedet.common.document import read_yaml
from sparsedet.common.errors import ConfigError, UnreachableTargetError
from sparsedet.sparsity.allocation.selection import max_zeros
from sparsedet.sparsity.targets import Selector

Share = Annotated[float, Field(ge=0, le=1)]


class Limit(ConfigModel):
    """What the sparsity of a weight must be, at every level.

    Counts are exact: of n entries (of a pattern that prunes whole blocks or channels: of n of these) at least
    ``ceil(min * n)`` and at most ``floor(max * n)`` go, or ``round(fixed * n)``, half to even. Without a maximum at
    most 99 % go. One always stays, unless `max` or `fixed` is 1, which asks for a dead layer.

    Attributes:
        min: least sparsity.
        max: greatest sparsity.
        fixed: the sparsity itself, in the place of both.
    """

    min: Share | None = None
    max: Share | None = None
    fixed: Share | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_range = self.min is not None or self.max is not None
        if is_range == (self.fixed is not None):
            raise ConfigError(f"expected min, max or both, or fixed alone, got {self._text}. Correct it.")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"expected min <= max, got {self._text}. Correct it.")
        return self

    @property
    def _text(self) -> str:
        given = self.model_dump(exclude_none=True)
        return ", ".join(f"{key}: {value:g}" for key, value in given.items()) or "none of them"

    def counts(self, name: str, numel: int) -> tuple[int, int]:
        """Return how many of the `numel` entries (or blocks, or channels) of the weight `name` go at least and at most.

        Raises:
            UnreachableTargetError: no whole number of entries is between the two.
        """
        if self.fixed is not None:
            count = min(round(self.fixed * numel), numel - (self.fixed < 1))
            return count, count
        lowest = math.ceil(Fraction(str(self.min or 0)) * numel)
        highest = max_zeros(numel)
        if self.max is not None:
            highest = math.floor(Fraction(str(self.max)) * numel)
        if lowest > highest:
            raise UnreachableTargetError(
                f"sparsity.limits: expected a limit that '{name}' with {numel} entries can meet, got {self._text}: "
                f"at least {lowest} and at most {highest} would go. Correct it, or write fixed."
            )
        return lowest, highest


def _read(value: Any) -> Any:
    """Return the limits in the file that `value` names, in its place."""
    if not isinstance(value, str | Path):
        return value
    document = read_yaml(Path(value))
    return {selector: validate(Limit, document, (selector,)) for selector in document.data}


Limits = Annotated[Mapping[Selector, Limit], BeforeValidator(_read)]
"""Pattern of weights -> limit, or the path of a YAML or JSON file that says it; of several that match a weight the last
counts."""
