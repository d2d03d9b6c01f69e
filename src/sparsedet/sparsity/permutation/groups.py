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
    names = list(sites)
    rows = [*sites.values(), *parts]
    classes = np.concatenate(rows)
    where = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    is_free = ~np.isin(classes, np.array(list(pinned), dtype=np.int64))
    classes, where = classes[is_free], where[is_free]
    order = np.lexsort((where, classes))
    classes, where = classes[order], where[order]
    starts = np.flatnonzero(np.diff(classes, prepend=-1))
    members: dict[bytes, list[int]] = {}
    for name, occurrences in zip(classes[starts].tolist(), np.split(where, starts[1:]), strict=True):
        members.setdefault(occurrences.tobytes(), []).append(name)
    groups = []
    for key, group in members.items():
        if len(group) > 1:
            occurs_in = np.unique(np.frombuffer(key, dtype=where.dtype))
            sites_of_group = [names[index] for index in occurs_in.tolist() if index < len(names)]
            groups.append(Group({site: _positions(sites[site], group) for site in sites_of_group}))
    return groups


def _positions(classes: Ids, group: Sequence[int]) -> Ids:
    inside = np.flatnonzero(np.isin(classes, group))
    return inside[np.argsort(classes[inside], kind="stable")].reshape(len(group), -1).T
