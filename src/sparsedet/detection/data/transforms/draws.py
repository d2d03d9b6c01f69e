"""Random numbers of the transforms, all from torch's global generator, which the data set seeds for each image."""

import torch


def happens(probability: float) -> bool:
    """Return True with the given probability."""
    return torch.rand(()).item() < probability


def uniform(low: float, high: float) -> float:
    """Return a number from [low, high)."""
    return low + (high - low) * torch.rand(()).item()


def integer(low: int, high: int) -> int:
    """Return a whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, ()).item())
