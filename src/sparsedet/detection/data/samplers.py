"""Which images make up which batch: pure functions of the number of images, their shapes, the seed and the step."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import ConfigError
from sparsedet.common.runtime import mix

Position = tuple[int, int]  # (epoch, index of the image)


class Shuffle(ConfigModel):
    """An endless stream, one permutation of all images after the other, cut into batches of equal size."""

    type: Literal["shuffle"] = "shuffle"

    def batches(
        self, aspect_ratios: Sequence[float], batch_size: int, num_ranks: int, seed: int, first_step: int
    ) -> Iterator[list[Position]]:
        """Yield without end the `num_ranks` batches of `first_step` and of every later step; see the other sampler."""
        num_images = len(aspect_ratios)
        epoch, offset = divmod(first_step * num_ranks * batch_size, num_images)
        batch: list[Position] = []
        while True:
            generator = torch.Generator().manual_seed(mix(seed, epoch))
            for index in torch.randperm(num_images, generator=generator)[offset:].tolist():
                batch.append((epoch, index))
                if len(batch) == batch_size:
                    yield batch
                    batch = []
            epoch, offset = epoch + 1, 0


class AspectRatioGroups(ConfigModel):
    """Batches of images of similar shape, so that little of a padded batch is padding.

    An epoch is what it is in United-Perception: a permutation of all images, shared out among the ranks in one piece
    each (with some images twice where they do not share out), each piece grouped into batches. It has as many steps
    as it would have without groups, so some images of incomplete batches are left out.

    Attributes:
        boundaries: rising ratios of height to width at which the next group begins; [1.0] parts landscape from
            portrait.
    """

    type: Literal["aspect_ratio_groups"] = "aspect_ratio_groups"
    boundaries: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)

    @field_validator("boundaries")
    @classmethod
    def _rising(cls, boundaries: tuple[float, ...]) -> tuple[float, ...]:
        if list(boundaries) != sorted(set(boundaries)):
            raise ConfigError(f"expected ratios that rise, got {list(boundaries)}. Sort them, each once.")
        return boundaries

    def batches(
        self, aspect_ratios: Sequence[float], batch_size: int, num_ranks: int, seed: int, first_step: int
    ) -> Iterator[list[Position]]:
        """Yield without end the `num_ranks` batches of `first_step` and of every later step.

        Args:
            aspect_ratios: height over width of each image.
            batch_size: images per batch, at most.
            num_ranks: batches per step; the r-th is that of rank r.
            seed: of the order.
            first_step: where to begin; the batches of a step do not depend on it.
        """
        groups = [bisect_right(self.boundaries, ratio) for ratio in aspect_ratios]
        steps_per_epoch = math.ceil(len(groups) / (batch_size * num_ranks))
        epoch, num_done = divmod(first_step, steps_per_epoch)
        while True:
            order = epoch_order(len(groups), epoch, seed)
            ranks = [
                group_batches(rank_indices(order, num_ranks, rank), groups, batch_size) for rank in range(num_ranks)
            ]
            for step in range(num_done, steps_per_epoch):
                for batches in ranks:
                    yield [(epoch, index) for index in batches[step]]
            epoch, num_done = epoch + 1, 0


SAMPLERS = {"aspect_ratio_groups": AspectRatioGroups, "shuffle": Shuffle}

SamplerConfig = Annotated[Shuffle | AspectRatioGroups, Field(discriminator="type")]


def epoch_order(num_images: int, epoch: int, seed: int) -> list[int]:
    """Return the order of the images in an epoch; with seed 0 it is that of United-Perception."""
    generator = torch.Generator().manual_seed(epoch if seed == 0 else mix(seed, epoch))
    order: list[int] = torch.randperm(num_images, generator=generator).tolist()
    return order


def rank_indices(order: Sequence[int], num_ranks: int, rank: int) -> list[int]:
    """Return the piece of `order` that `rank` trains on; all are of one length, for which images may come again."""
    size = math.ceil(len(order) / num_ranks)
    return list(islice(cycle(order), rank * size, (rank + 1) * size))


def group_batches(indices: Sequence[int], groups: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return ceil(N / batch_size) batches of N `indices`, each of one of the `groups`, ordered by their first index.

    Args:
        indices: of images, in the order they are drawn.
        groups: group of each image.
        batch_size: images per batch; the last batch of a group may have fewer.
    """
    batches: list[list[int]] = []
    unfinished: dict[int, list[int]] = {}
    for index in indices:
        batch = unfinished.setdefault(groups[index], [])
        if not batch:
            batches.append(batch)
        batch.append(index)
        if len(batch) == batch_size:
            del unfinished[groups[index]]
    return batches[: math.ceil(len(indices) / batch_size)]


def evaluation_indices(num_images: int, num_ranks: int = 1, rank: int = 0) -> range:
    """Return the images that `rank` evaluates: every one on exactly one rank."""
    return range(rank, num_images, num_ranks)
