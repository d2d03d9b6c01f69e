import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from sparsedet.detection.data.duplicates import HEIGHT, WIDTH, find_twins, thumbnail


def scene(seed, size=(160, 120)):
    """A picture with large and small structure, as photographs have."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.3)


def thumbnails(images):
    return np.stack([thumbnail(torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())) for image in images])


def jpeg(image, quality=50):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


COPIES = {
    "the same": lambda image: image,
    "saved again": jpeg,
    "half the size": lambda image: image.resize((80, 60)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "2 % cut off": lambda image: image.crop((3, 2, 157, 118)),
}
OTHERS = {
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "a quarter of it": lambda image: image.crop((0, 0, 80, 60)),
    "negative": lambda image: Image.fromarray(255 - np.asarray(image)),
    "all black": lambda image: Image.new("RGB", image.size),
}


@pytest.fixture(scope="module")
def train():
    return [scene(seed) for seed in range(60)]


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_and_named_with_their_original(train, name):
    val = [COPIES[name](image) for image in train[20:30]]
    assert find_twins(thumbnails(train), thumbnails(val)) == [(number, 20 + number) for number in range(10)]


@pytest.mark.parametrize("name", OTHERS)
def test_other_images_are_not(train, name):
    assert find_twins(thumbnails(train), thumbnails([OTHERS[name](image) for image in train[:10]])) == []


def test_images_of_one_gray_are_like_none():
    gray = thumbnails([Image.new("RGB", (50, 40), (value, value, value)) for value in (0, 0, 90)])
    assert find_twins(gray, gray) == []


def test_more_images_than_are_compared_at_once(train):
    many = np.tile(thumbnails([scene(1000)]), (600, 1, 1))
    many[570] = thumbnails(train[7:8])[0]
    assert find_twins(thumbnails(train), many) == [(570, 7)]


def test_the_most_alike_is_named():
    original = thumbnails([scene(3)])
    train = np.concatenate([original * 0.97 + np.random.default_rng(0).normal(0, 4, original.shape), original])
    assert find_twins(train.astype(np.float32), original) == [(0, 1)]


def test_a_thumbnail_holds_the_means_of_the_cells():
    image = torch.randint(0, 256, (3, HEIGHT * 5, WIDTH * 3), dtype=torch.uint8)
    expected = image.numpy().mean(axis=0).reshape(HEIGHT, 5, WIDTH, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail(image), expected, rtol=1e-5)
    assert thumbnail(image[:, :1, :1]).shape == (HEIGHT, WIDTH)


def test_nothing_to_compare():
    none = np.zeros((0, HEIGHT, WIDTH), np.float32)
    assert find_twins(none, thumbnails([scene(0)])) == find_twins(thumbnails([scene(0)]), none) == []
