"""Random rotation, scale, shear, translation and perspective."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import grid_sample

from sparsedet.common.config import ConfigModel
from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.scene import IGNORE, Scene, clip, has_area
from sparsedet.detection.data.transforms.draws import uniform
from sparsedet.detection.data.transforms.fields import GreyLevel, Probability
from sparsedet.detection.data.transforms.resize import to_grey_levels

_MIN_SIDE_PX = 2  # objects that end up smaller, narrower or with less of their area are no longer to be found
_MAX_ASPECT_RATIO = 20
_MIN_AREA_SHARE = 0.2


class RandomPerspective(ConfigModel):
    """Rotate, scale, shear and shift the image about its centre, and tilt it.

    Objects that are left with less than a fifth of their area, or as slivers, are removed.

    Attributes:
        degrees: angle drawn from [-d, d].
        translate: the centre ends up to this share of the result's sides away from its centre.
        scale: factor drawn from [1 - s, 1 + s].
        shear: angles along x and y drawn from [-s, s], in degrees.
        perspective: change of scale per pixel along x and y, drawn from [-p, p]; at most about 1 / (sum of the sides).
        fill: grey level outside the image.
        margin: pixels cut off each side; half of its size after a mosaic.
        only_mosaics: leave images alone that no mosaic was made of.

    Source: augmentation of YOLOv5.
    """

    type: Literal["random_perspective"] = "random_perspective"
    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Probability = 0.1
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.5
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    perspective: Annotated[float, Field(ge=0, le=1e-3)] = 0.0
    fill: GreyLevel = 0
    margin: Annotated[int, Field(ge=0)] = 0
    only_mosaics: bool = False

    def __call__(self, scene: Scene) -> Scene:
        """Return the warped scene."""
        if self.only_mosaics and not scene.is_mosaic:
            return scene
        tilt_x, tilt_y = (uniform(-self.perspective, self.perspective) for _ in range(2))
        angle = uniform(-self.degrees, self.degrees)
        scale = uniform(1 - self.scale, 1 + self.scale)
        shear_x, shear_y = (uniform(-self.shear, self.shear) for _ in range(2))
        shift_x, shift_y = (uniform(-self.translate, self.translate) for _ in range(2))
        return self.warp(scene, scale, angle, (shear_x, shear_y), (tilt_x, tilt_y), (shift_x, shift_y))

    def warp(
        self,
        scene: Scene,
        scale: float,
        angle: float = 0.0,
        shears: tuple[float, float] = (0.0, 0.0),
        tilts: tuple[float, float] = (0.0, 0.0),
        shifts: tuple[float, float] = (0.0, 0.0),
    ) -> Scene:
        """Return the scene warped with given numbers.

        Args:
            scene: what to warp.
            scale: factor.
            angle: degrees, anti-clockwise.
            shears: angles along x and y, in degrees.
            tilts: change of scale per pixel along x and y.
            shifts: of the centre along x and y, as shares of the sides of the result.

        Raises:
            DatasetError: the margins leave nothing of the image.
        """
        height, width = scene.size
        new_height, new_width = height - 2 * self.margin, width - 2 * self.margin
        if min(new_height, new_width) < 1:
            raise DatasetError(
                f"random_perspective.margin: expected less than half of an image's sides ({width}x{height}), "
                f"got {self.margin}. Lower it, or set only_mosaics: true."
            )
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[:2, 2] = torch.tensor([-width / 2, -height / 2])
        for step in (
            [[1, 0, 0], [0, 1, 0], [*tilts, 1]],
            _rotation(angle, scale),
            [[1, math.tan(math.radians(shears[0])), 0], [math.tan(math.radians(shears[1])), 1, 0], [0, 0, 1]],
            [[1, 0, (0.5 + shifts[0]) * new_width], [0, 1, (0.5 + shifts[1]) * new_height], [0, 0, 1]],
        ):
            matrix = torch.tensor(step, dtype=torch.float64) @ matrix
        image = _warp_image(scene.image, matrix, (new_height, new_width), self.fill)
        end = int(scene.inclusive_boxes)
        boxes = clip(_warp_boxes(scene, matrix), new_width - end, new_height - end)
        is_left = _is_left(scene.boxes_xyxy, boxes, scale)
        return scene.with_boxes(
            image, boxes, scene.labels, torch.where(scene.labels == IGNORE, has_area(boxes), is_left)
        )


def _rotation(angle: float, scale: float) -> list[list[float]]:
    cosine, sine = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    return [[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]


def _warp_image(image: Tensor, matrix: Tensor, size: tuple[int, int], fill: int) -> Tensor:
    """Return uint8 pixels (3, *size), each interpolated where the inverse of `matrix` puts it in the image.

    Args:
        image: uint8, shape (3, H, W).
        matrix: shape (3, 3), from places in the image to places in the result; pixels lie at whole numbers.
        size: (height, width) of the result.
        fill: grey level of places outside the image.
    """
    height, width = image.shape[1:]
    inverse = torch.linalg.inv(matrix)
    ys, xs = (torch.arange(side, dtype=torch.float64) for side in size)
    x, y, divisor = (row[0] * xs + row[1] * ys[:, None] + row[2] for row in inverse)
    sides = torch.tensor([width, height], dtype=torch.float64)
    # grid_sample counts half sides from the centre, to the outer edges of the pixels
    places = (2 * torch.stack([x, y], dim=-1) / divisor[..., None] + 1) / sides - 1
    places[divisor <= 0] = 2  # behind the viewer
    pixels = image[None].float().sub_(fill)  # grid_sample takes 0 for what is outside
    return to_grey_levels(grid_sample(pixels, places[None].float(), align_corners=False)[0] + fill)


def _warp_boxes(scene: Scene, matrix: Tensor) -> Tensor:
    """Return the boxes (N, 4) around the warped corners of the boxes."""
    half = 0 if scene.inclusive_boxes else 0.5  # the matrix takes the centre of pixel 0 for the origin
    corners = scene.boxes_xyxy.double()[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2) - half
    warped = corners @ matrix[:, :2].T + matrix[:, 2]
    points = warped[..., :2] / warped[..., 2:] + half
    points[(warped[..., 2] <= 0).any(dim=1)] = 0  # behind the viewer
    return torch.cat([points.amin(dim=1), points.amax(dim=1)], dim=1).float()


def _is_left(before: Tensor, after: Tensor, scale: float) -> Tensor:
    """Return which boxes are still worth finding, shape (N,)."""
    old_sides, sides = before[:, 2:] - before[:, :2], after[:, 2:] - after[:, :2]
    share = sides.prod(dim=1) / (old_sides.prod(dim=1) * scale**2)
    aspect_ratio = sides.amax(dim=1) / sides.amin(dim=1)
    return (sides > _MIN_SIDE_PX).all(dim=1) & (share > _MIN_AREA_SHARE) & (aspect_ratio < _MAX_ASPECT_RATIO)
