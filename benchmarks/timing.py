"""What the benchmarks share: interleaved rounds on one thread, medians with their spread, a table and a JSON line.

A shared machine changes its speed from second to second. Variants therefore take turns inside one process, and
are compared by the ratio of two runs of the same round. CPU time does not count the time in which other processes
had the core; wall time does.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from sparsedet.common.runtime import environment, start

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}

Prepare = Callable[[], Callable[[], object]]
"""Runs outside the clocks in every round and returns what is timed."""


class Spread(NamedTuple):
    """Middle and quartiles of some numbers."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise `values`."""
        lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, lower, upper)

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.lower:{spec}}–{self.upper:{spec}})"


class Timings:
    """Seconds of several variants, round by round.

    Args:
        variants: what takes turns, by name.
        num_rounds: rounds that count; one more is run before them.
    """

    def __init__(self, variants: Mapping[str, Prepare], num_rounds: int) -> None:
        self._seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in variants}
        for index in range(num_rounds + 1):
            for name, prepare in variants.items():
                run = prepare()
                before = {clock: now() for clock, now in CLOCKS.items()}
                run()
                for clock, now in CLOCKS.items():
                    if index > 0:
                        self._seconds[name][clock].append(now() - before[clock])

    def seconds(self, name: str, clock: str = "cpu") -> Spread:
        """Return the seconds of one run of the variant `name`."""
        return Spread.of(self._seconds[name][clock])

    def ratio(self, name: str, base: str, clock: str = "cpu") -> Spread:
        """Return the ratio of `name` to `base`, both from the same round."""
        pairs = zip(self._seconds[name][clock], self._seconds[base][clock], strict=True)
        return Spread.of([value / base_value for value, base_value in pairs])


def set_up() -> None:
    """Use one thread, fixed seeds, and flush denormals."""
    torch.set_num_threads(1)
    start(0, torch.device("cpu"))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table with aligned columns."""
    lines = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def print_json(results: Sequence[Mapping[str, Any]]) -> None:
    """Print results (a `Spread` becomes an object) and environment as one line of JSON."""
    plain = [
        {key: value._asdict() if isinstance(value, Spread) else value for key, value in result.items()}
        for result in results
    ]
    print(json.dumps({"results": plain, "environment": environment(torch.device("cpu"))}))
