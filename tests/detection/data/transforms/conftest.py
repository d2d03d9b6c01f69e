"""Scenes that the transforms are tested on."""

import random

import numpy as np
import pytest
import torch

from sparsedet.detection.data.scene import Scene

GOLDEN_BOXES = ((10.5, 8.25, 60.75, 70.5, 3), (70, 20, 120, 90, 17), (30, 40, 44, 52, 80))


class Split:
    """A split of the given scenes."""

    def __init__(self, scenes):
        self.scenes = scenes

    def __len__(self):
        return len(self.scenes)

    def load(self, index):
        return self.scenes[index]


def make_scene(pixels, boxes, others=(), inclusive=False):
    """Return a scene of pixels (H, W, 3) and rows of x1, y1, x2, y2, label."""
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return Scene(image, rows[:, :4], rows[:, 4].long(), Split(others), inclusive)


@pytest.fixture
def scene():
    """Return a function that makes a scene of 40 x 30 pixels that are all different, or of other ones."""

    def scene(boxes=((2, 3, 12, 11, 0), (20, 10, 40, 30, 1)), height=30, width=40, **settings):
        pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
        return make_scene(pixels, boxes, **settings)

    return scene


@pytest.fixture
def golden_scene(blocks):
    """Return a function that makes the scene that a golden transform was given, with inclusive boxes."""

    def golden_scene(boxes=GOLDEN_BOXES, **size_and_seed):
        return make_scene(blocks(**size_and_seed), boxes, inclusive=True)

    return golden_scene


@pytest.fixture
def seed_all():
    """Return a function that seeds the three generators that United-Perception's transforms draw from."""

    def seed_all(seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    return seed_all


@pytest.fixture
def assert_golden(golden):
    """Return a function that compares a scene with a golden one: boxes exactly, pixels within some grey levels."""

    def assert_golden(name, scene, grey_levels):
        expected = golden["transforms"][name]
        rows = torch.tensor(expected["gt_bboxes"])
        rows = rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]  # UP keeps boxes of which nothing is left
        assert torch.allclose(scene.boxes_xyxy, rows[:, :4], rtol=0, atol=1e-4)
        assert scene.labels.tolist() == rows[:, 4].tolist()
        image = expected["image"]
        pixels = scene.image.permute(1, 2, 0).double()
        assert list(pixels.shape) == image["shape"]
        probes = pixels.reshape(-1)[image["probe_idx"]]
        assert (probes - torch.tensor(image["probe"])).abs().max() <= grey_levels
        assert abs(pixels.sum() - image["sum"]) <= grey_levels * pixels.numel()

    return assert_golden


@pytest.fixture
def traced():
    """Return a function that makes a black scene with a white rectangle; its box ends in the middle of soft edges."""

    def traced(height, width, box):
        white = torch.zeros(1, 1, height, width)
        white[:, :, box[1] : box[3], box[0] : box[2]] = 255
        soft = torch.nn.functional.avg_pool2d(white, kernel_size=13, stride=1, padding=6)[0, 0]
        pixels = soft.round().byte().numpy()[:, :, None].repeat(3, axis=2)
        return make_scene(pixels, [(*box, 0)])

    return traced


@pytest.fixture
def seen():
    """Return a function that measures the white rectangle of a scene: x1, y1, x2, y2 of its edges."""

    def seen(scene):
        white = scene.image[0].double() / 255
        edges = []
        for profile in (white.amax(dim=0), white.amax(dim=1)):
            places = torch.arange(len(profile)) + 0.5
            length = profile.sum()
            centre = (places * profile).sum() / length
            edges.append((float(centre - length / 2), float(centre + length / 2)))
        (x1, x2), (y1, y2) = edges
        return [x1, y1, x2, y2]

    return seen
