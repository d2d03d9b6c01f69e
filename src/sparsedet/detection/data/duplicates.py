"""Images of two splits that look alike: near in a perceptual hash, and alike as thumbnails.

Both thresholds were set on photographs (cards, blood cells, trees): pictures saved again at JPEG quality 50, at half
the size, 20 % brighter or with 2 % cut off at each side are found; different pictures of one scene are not.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

MAX_DISTANCE = 10  # of the 64 bits of the hash
MIN_CORRELATION = 0.95  # of the thumbnails
HEIGHT, WIDTH = 16, 18  # of a thumbnail: two cells for each of the hash's 8 x 9

Thumbnails = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_CHUNK = 256  # validation images compared at once


def thumbnail(image: Tensor) -> Thumbnails:
    """Return the mean gray of 16 x 18 cells of an image (uint8, (3, H, W)), float32, shape (16, 18)."""
    gray = image.sum(dim=0, dtype=torch.int32).float().div_(3)
    small: Thumbnails = adaptive_avg_pool2d(gray[None], (HEIGHT, WIDTH))[0].numpy()
    return small


def find_twins(train: Thumbnails, val: Thumbnails) -> list[tuple[int, int]]:
    """Return which images of `val` look like one of `train`.

    Args:
        train: thumbnails, shape (N, 16, 18).
        val: thumbnails, shape (M, 16, 18).

    Returns:
        (index in val, index in train), for each image of val at most one: the most alike. Images of one single gray
        are like none.

    Source: the hash is "dHash": N. Krawetz, Kind of Like That, 2013.
    """
    twins: list[tuple[int, int]] = []
    if not len(train) or not len(val):
        return twins
    train_signs, train_patterns = _signs(train), _patterns(train)
    for start in range(0, len(val), _CHUNK):
        signs, patterns = _signs(val[start : start + _CHUNK]), _patterns(val[start : start + _CHUNK])
        num_bits = signs.shape[1]
        distances = (num_bits - signs @ train_signs.T) / 2  # whole numbers below 2**24, so exact
        likeness = np.where(distances <= MAX_DISTANCE, patterns @ train_patterns.T, -1)
        best = likeness.argmax(axis=1)
        for index in np.flatnonzero(likeness[np.arange(len(best)), best] >= MIN_CORRELATION):
            twins.append((start + int(index), int(best[index])))
    return twins


def _signs(thumbnails: Thumbnails) -> Thumbnails:
    """Return the hash as +1 and -1: whether each of 8 x 9 cells is darker than its right neighbour, shape (N, 64)."""
    cells = thumbnails.reshape(-1, HEIGHT // 2, 2, WIDTH // 2, 2).mean(axis=(2, 4))
    return np.where(cells[:, :, 1:] > cells[:, :, :-1], np.float32(1), np.float32(-1)).reshape(len(cells), -1)


def _patterns(thumbnails: Thumbnails) -> Thumbnails:
    """Return thumbnails of mean 0 and length 1, shape (N, 288); zeros where there is only one gray."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    patterns: Thumbnails = flat / np.maximum(lengths, np.float32(1e-3))
    return patterns
