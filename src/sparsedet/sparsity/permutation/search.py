"""Search for an order of input channels in which N:M keeps more.

The M channels of a group form a stripe. What a stripe keeps does not depend on the order inside it, so the search
swaps channels of different stripes. For all pairs of channels the gain of their swap comes from one matrix of L1
distances, and swaps of different pairs of stripes do not touch each other, so that many are made at once:

Let channel i stand in a stripe and h_i be, row by row, the N-th largest magnitude of the others there. A channel with
magnitudes w in its place adds max(h_i, w) to the rest of the stripe, and max(a, b) = (a + b + |a - b|) / 2. With
L[i, j] = sum |h_i - w_j| over the rows, the swap of i and j gains (L[i, j] + L[j, i] - L[i, i] - L[j, j]) / 2.
"""

import torch
from torch import Tensor

_TEMPERATURE = 0.5
"""Spread of the first round's noise, in medians of the absolute gains of a swap."""

_WORK = 5e9
"""Distances in all that rounds with noise may take (rows * channels² each): a few seconds on one core."""

_FEWEST_ROUNDS = 8
"""With fewer rounds noise does more harm than good."""


def kept_magnitude(magnitudes: Tensor, n: int, m: int) -> float:
    """Return the sum of the `n` largest of every `m` consecutive channels.

    Args:
        magnitudes: shape (rows, channels), >= 0.
        n: what stays of a group.
        m: size of a group; must divide the channels.
    """
    return float(magnitudes.view(len(magnitudes), -1, m).topk(n, dim=2, sorted=False).values.sum(dtype=torch.float64))


@torch.no_grad()
def search_permutation(magnitudes: Tensor, n: int, m: int, seed: int = 0) -> Tensor:
    """Search for an order of the channels in which N:M keeps a large sum of magnitudes.

    Random noise on the gains, less in every round, leads out of local optima; then only swaps that gain are made.
    Large weights, where a round takes long and noise gains little, get few rounds or none. Small ones are searched
    several times. The result depends on the magnitudes, the device and the seed alone, and never keeps less than
    the order that is there.

    Args:
        magnitudes: shape (rows, channels), >= 0: output channels and kernel positions, of all layers that
            read these channels. The search runs on its device.
        n: what stays of a group.
        m: size of a group; must divide the channels.
        seed: of the noise.

    Returns:
        Permutation, int64, shape (channels,) on the device: position -> channel.

    Source: the idea that permuting input channels makes N:M keep more is Pool and Yu's (NeurIPS 2021); NVIDIA's ASP
    searches by trying exchanges one after the other.

    Example:
        >>> search_permutation(torch.tensor([[9.0, 8, 7, 6, 1, 1, 1, 1]]), 2, 4).view(2, 4).lt(4).sum(1)
        tensor([2, 2])
    """
    columns = magnitudes.T.float().contiguous()
    num_channels, num_rows = columns.shape
    best = torch.arange(num_channels, device=columns.device)
    if num_channels <= m or num_rows == 0:
        return best
    kept = kept_magnitude(magnitudes, n, m)
    generator = torch.Generator(columns.device).manual_seed(seed)
    num_rounds = min(4 * num_channels, int(_WORK / (num_rows * num_channels**2)))
    for _ in range(min(16, max(1, 2**15 // num_channels**3))):
        search = _Search(columns, n, m, generator)
        for index in range(num_rounds if num_rounds >= _FEWEST_ROUNDS else 0):
            search.swap_best(_TEMPERATURE * (1 - index / num_rounds))
        for _ in range(10 * num_channels):  # far more than it takes; a bound, should rounding lead in a circle
            if not search.swap_best():
                break
        found = kept_magnitude(magnitudes[:, search.order], n, m)
        if found > kept * (1 + 1e-9):  # not by another rounding
            best, kept = search.order, found
    return best


class _Search:
    """Channels in an order, and what their swaps would gain.

    Args:
        columns: magnitudes, shape (C, R).
        n: what stays of a group.
        m: size of a group.
        generator: of the noise.
    """

    def __init__(self, columns: Tensor, n: int, m: int, generator: torch.Generator) -> None:
        self.n, self.m, self.generator = n, m, generator
        self.columns = columns.clone()
        self.order = torch.arange(len(columns), device=columns.device)
        self.stripes = torch.arange(len(columns) // m, device=columns.device)
        stripe = self.stripes.repeat_interleave(m)
        self.is_same = stripe[:, None] == stripe
        self.smallest = 2e-6 * float(columns.sum()) / len(columns)  # gains below are rounding errors
        self.distances = columns.new_empty(len(columns), len(columns))
        self._update(self.stripes)
        self.scale = float(self._gains()[~self.is_same].abs().median())

    def swap_best(self, temperature: float = 0.0) -> bool:
        """Make the best swap of every pair of stripes that are each other's best partner; return whether there was one.

        Args:
            temperature: of the noise on the gains, see `_TEMPERATURE`.
        """
        gains = self._gains()
        if temperature > 0:
            noise = torch.randn(gains.shape, generator=self.generator, device=gains.device)
            gains += (noise + noise.T).mul_(temperature * self.scale)
        gains.masked_fill_(self.is_same, -torch.inf)
        num_stripes, m = len(self.stripes), self.m
        pairs = gains.view(num_stripes, m, num_stripes, m).transpose(1, 2).reshape(num_stripes, num_stripes, m * m)
        best, swap = pairs.max(2)
        gain, partner = best.max(1)
        first = self.stripes[(partner[partner] == self.stripes) & (self.stripes < partner) & (gain > self.smallest)]
        if len(first) == 0:
            return False
        second = partner[first]
        swap = swap[first, second]
        one, other = first * m + swap // m, second * m + swap % m
        ours, theirs = torch.cat([one, other]), torch.cat([other, one])
        self.columns[ours] = self.columns[theirs]
        self.order[ours] = self.order[theirs]
        self.distances[:, ours] = self.distances[:, theirs]
        self._update(torch.cat([first, second]))
        return True

    def _gains(self) -> Tensor:
        """Return twice the gain of swapping channels i and j, shape (C, C); of no meaning inside a stripe."""
        own = self.distances.diagonal()
        return (self.distances + self.distances.T).sub_(own[:, None] + own)

    def _update(self, stripes: Tensor) -> None:
        """Compute anew the distances of the channels in `stripes`."""
        inside = self.columns.view(len(self.stripes), self.m, -1)[stripes]
        top = inside.topk(self.n + 1, dim=1).values
        last, next_one = top[:, self.n - 1 : self.n], top[:, self.n :]
        others = torch.where(inside >= last, next_one, last)  # the n-th largest without the channel itself
        distances = torch.cdist(others.flatten(0, 1), self.columns, p=1)
        self.distances.view(-1, self.m, len(self.columns))[stripes] = distances.view(len(stripes), self.m, -1)
