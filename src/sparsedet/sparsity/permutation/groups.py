"""Which channels may be exchanged for each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsedet.sparsity.permutation.flow import Ids

Site = tuple[str, int]
"""Name of a parameter or buffer, and one of its dimensions."""


@dataclass(frozen=True)
class Group:
    """Channels that may be exchanged for each other, if it is done everywhere.

    Attributes:
        positions: for each dimension that has them, where they are: shape (occurrences, channels), the channels
            in the same order everywhere.
    """

    positions: dict[Site, Ids]

    @property
    def num_channels(self) -> int:
        """How many channels there are."""
        return len(next(iter(self.positions.values()))[0])


def find_groups(sites: Mapping[Site, Ids], pinned: Mapping[int, str], parts: Sequence[Ids]) -> list[Group]:
    """Put channels that occur in the same dimensions, and are told apart by nothing, into groups.

    Args:
        sites: class of the channel at each position of each dimension.
        pinned: classes that stay where they are.
        parts: sets of classes that an operation tells apart from others.
    """
    positions: dict[int, dict[Site, list[int]]] = {}
    for site, classes in sites.items():
        for position, name in enumerate(classes.tolist()):
            positions.setdefault(name, {}).setdefault(site, []).append(position)
    parts_of: dict[int, list[int]] = {}
    for index, part in enumerate(parts):
        for name in part.tolist():
            parts_of.setdefault(name, []).append(index)
    alike: dict[object, list[dict[Site, list[int]]]] = {}
    for name, occurrences in positions.items():
        if name not in pinned:
            numbers = tuple((site, len(places)) for site, places in occurrences.items())
            alike.setdefault((numbers, tuple(parts_of.get(name, ()))), []).append(occurrences)
    return [
        Group({site: np.array([channel[site] for channel in channels]).T for site in channels[0]})
        for channels in alike.values()
        if len(channels) > 1
    ]
